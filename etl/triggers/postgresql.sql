-- Whoever writes executions, results, links or test sessions, by whatever way, drops the rollups that were made of them;
-- views then count again, until `etl/rollups.py` has made them anew. Statements stand apart by an empty line.
-- The first lock keeps a refresh from counting while writers are not done, the second lets one writer at a time change
-- checks and days that were rolled up: two that met them in different orders would wait for each other. Most writers
-- find nothing to change. What is touched is made distinct first: a statement may write thousands of rows of a few
-- checks, days and sessions.

CREATE OR REPLACE FUNCTION etl_touch_executions() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(ROLLUP_LOCK());
    IF EXISTS (
        SELECT 1
        FROM (SELECT DISTINCT account_id, check_key FROM touched) t
        LEFT JOIN etl_checks k ON k.check_hash = CHECK_HASH(t.account_id, t.check_key)
        WHERE k.check_hash IS NULL OR k.rolled_up_for IS NOT NULL OR k.has_streaks
    ) OR EXISTS (
        SELECT 1
        FROM (SELECT DISTINCT UTC_DAY(started_at) AS day FROM touched) t
        LEFT JOIN etl_days d ON d.day = t.day
        WHERE d.day IS NULL OR d.is_rolled_up
    ) THEN
        PERFORM pg_advisory_xact_lock(TOUCH_LOCK());
        INSERT INTO etl_checks (check_hash, account_id, check_key)
        SELECT CHECK_HASH(t.account_id, t.check_key), t.account_id, t.check_key
        FROM (SELECT DISTINCT account_id, check_key FROM touched) t
        ON CONFLICT (check_hash) DO UPDATE SET rolled_up_for = NULL, has_streaks = NULL
        WHERE etl_checks.rolled_up_for IS NOT NULL OR etl_checks.has_streaks;
        INSERT INTO etl_days (day, is_rolled_up)
        SELECT DISTINCT UTC_DAY(started_at), FALSE FROM touched
        ON CONFLICT (day) DO UPDATE SET is_rolled_up = FALSE WHERE etl_days.is_rolled_up;
    END IF;
    DELETE FROM etl_rollup_test_session_summary WHERE test_session_id IN (SELECT test_session_id FROM touched);
    INSERT INTO etl_touched_error_groups (error_group_id)
    SELECT DISTINCT l.error_group_id
    FROM (SELECT DISTINCT test_session_id FROM touched) t
    JOIN test_session_result_error_groups l ON l.test_session_id = t.test_session_id
    JOIN etl_rollup_error_group_impact i ON i.error_group_id = l.error_group_id;
    RETURN NULL;
END $$

CREATE OR REPLACE FUNCTION etl_touch_links() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(ROLLUP_LOCK());
    DELETE FROM etl_rollup_test_session_summary WHERE test_session_id IN (SELECT test_session_id FROM touched);
    INSERT INTO etl_touched_error_groups (error_group_id)
    SELECT DISTINCT t.error_group_id
    FROM touched t
    JOIN etl_rollup_error_group_impact i ON i.error_group_id = t.error_group_id;
    RETURN NULL;
END $$

CREATE OR REPLACE FUNCTION etl_touch_test_sessions() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(ROLLUP_LOCK());
    DELETE FROM etl_rollup_test_session_summary WHERE test_session_id IN (SELECT test_session_id FROM touched);
    INSERT INTO etl_touched_error_groups (error_group_id)
    SELECT DISTINCT l.error_group_id
    FROM (SELECT DISTINCT test_session_id FROM touched) t
    JOIN test_session_result_error_groups l ON l.test_session_id = t.test_session_id
    JOIN etl_rollup_error_group_impact i ON i.error_group_id = l.error_group_id;
    RETURN NULL;
END $$

CREATE OR REPLACE TRIGGER etl_touch_inserted AFTER INSERT ON check_executions
REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION etl_touch_executions()

CREATE OR REPLACE TRIGGER etl_touch_deleted AFTER DELETE ON check_executions
REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION etl_touch_executions()

CREATE OR REPLACE TRIGGER etl_touch_before AFTER UPDATE ON check_executions
REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION etl_touch_executions()

CREATE OR REPLACE TRIGGER etl_touch_after AFTER UPDATE ON check_executions
REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION etl_touch_executions()

CREATE OR REPLACE TRIGGER etl_touch_inserted AFTER INSERT ON test_session_result_error_groups
REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION etl_touch_links()

CREATE OR REPLACE TRIGGER etl_touch_deleted AFTER DELETE ON test_session_result_error_groups
REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION etl_touch_links()

CREATE OR REPLACE TRIGGER etl_touch_before AFTER UPDATE ON test_session_result_error_groups
REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION etl_touch_links()

CREATE OR REPLACE TRIGGER etl_touch_after AFTER UPDATE ON test_session_result_error_groups
REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION etl_touch_links()

CREATE OR REPLACE TRIGGER etl_touch_after AFTER UPDATE ON test_sessions
REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION etl_touch_test_sessions()

CREATE OR REPLACE TRIGGER etl_touch_after AFTER UPDATE ON test_session_results
REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION etl_touch_test_sessions()

CREATE OR REPLACE TRIGGER etl_touch_deleted AFTER DELETE ON test_session_results
REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION etl_touch_test_sessions()

-- Whoever writes executions, results, links or test sessions, by whatever way, drops the rollups that were made of them;
-- views then count again, until `etl/rollups.py` has made them anew. Statements stand apart by an empty line.

CREATE TRIGGER etl_touch_inserted_executions AFTER INSERT ON check_executions BEGIN
    INSERT INTO etl_checks (check_hash, account_id, check_key)
    VALUES (CHECK_HASH(NEW.account_id, NEW.check_key), NEW.account_id, NEW.check_key)
    ON CONFLICT (check_hash) DO UPDATE SET rolled_up_for = NULL, has_streaks = NULL
    WHERE rolled_up_for IS NOT NULL OR has_streaks;
    INSERT INTO etl_days (day, is_rolled_up) VALUES (UTC_DAY(NEW.started_at), 0)
    ON CONFLICT (day) DO UPDATE SET is_rolled_up = 0 WHERE is_rolled_up;
    DELETE FROM etl_rollup_test_session_summary WHERE test_session_id = NEW.test_session_id;
    INSERT INTO etl_touched_error_groups (error_group_id)
    SELECT l.error_group_id
    FROM test_session_result_error_groups l
    JOIN etl_rollup_error_group_impact i ON i.error_group_id = l.error_group_id
    WHERE l.test_session_id = NEW.test_session_id;
END

CREATE TRIGGER etl_touch_deleted_executions AFTER DELETE ON check_executions BEGIN
    UPDATE etl_checks SET rolled_up_for = NULL, has_streaks = NULL
    WHERE check_hash = CHECK_HASH(OLD.account_id, OLD.check_key) AND (rolled_up_for IS NOT NULL OR has_streaks);
    UPDATE etl_days SET is_rolled_up = 0 WHERE day = UTC_DAY(OLD.started_at) AND is_rolled_up;
    DELETE FROM etl_rollup_test_session_summary WHERE test_session_id = OLD.test_session_id;
    INSERT INTO etl_touched_error_groups (error_group_id)
    SELECT l.error_group_id
    FROM test_session_result_error_groups l
    JOIN etl_rollup_error_group_impact i ON i.error_group_id = l.error_group_id
    WHERE l.test_session_id = OLD.test_session_id;
END

CREATE TRIGGER etl_touch_updated_executions AFTER UPDATE ON check_executions BEGIN
    UPDATE etl_checks SET rolled_up_for = NULL, has_streaks = NULL
    WHERE check_hash = CHECK_HASH(OLD.account_id, OLD.check_key) AND (rolled_up_for IS NOT NULL OR has_streaks);
    UPDATE etl_days SET is_rolled_up = 0 WHERE day = UTC_DAY(OLD.started_at) AND is_rolled_up;
    INSERT INTO etl_checks (check_hash, account_id, check_key)
    VALUES (CHECK_HASH(NEW.account_id, NEW.check_key), NEW.account_id, NEW.check_key)
    ON CONFLICT (check_hash) DO UPDATE SET rolled_up_for = NULL, has_streaks = NULL
    WHERE rolled_up_for IS NOT NULL OR has_streaks;
    INSERT INTO etl_days (day, is_rolled_up) VALUES (UTC_DAY(NEW.started_at), 0)
    ON CONFLICT (day) DO UPDATE SET is_rolled_up = 0 WHERE is_rolled_up;
    DELETE FROM etl_rollup_test_session_summary WHERE test_session_id IN (OLD.test_session_id, NEW.test_session_id);
    INSERT INTO etl_touched_error_groups (error_group_id)
    SELECT l.error_group_id
    FROM test_session_result_error_groups l
    JOIN etl_rollup_error_group_impact i ON i.error_group_id = l.error_group_id
    WHERE l.test_session_id = NEW.test_session_id;
END

CREATE TRIGGER etl_touch_inserted_links AFTER INSERT ON test_session_result_error_groups BEGIN
    INSERT INTO etl_touched_error_groups (error_group_id)
    SELECT error_group_id FROM etl_rollup_error_group_impact WHERE error_group_id = NEW.error_group_id;
    DELETE FROM etl_rollup_test_session_summary WHERE test_session_id = NEW.test_session_id;
END

CREATE TRIGGER etl_touch_deleted_links AFTER DELETE ON test_session_result_error_groups BEGIN
    INSERT INTO etl_touched_error_groups (error_group_id)
    SELECT error_group_id FROM etl_rollup_error_group_impact WHERE error_group_id = OLD.error_group_id;
    DELETE FROM etl_rollup_test_session_summary WHERE test_session_id = OLD.test_session_id;
END

CREATE TRIGGER etl_touch_updated_links AFTER UPDATE ON test_session_result_error_groups BEGIN
    INSERT INTO etl_touched_error_groups (error_group_id)
    SELECT error_group_id
    FROM etl_rollup_error_group_impact
    WHERE error_group_id IN (OLD.error_group_id, NEW.error_group_id);
    DELETE FROM etl_rollup_test_session_summary WHERE test_session_id IN (OLD.test_session_id, NEW.test_session_id);
END

CREATE TRIGGER etl_touch_updated_test_sessions AFTER UPDATE ON test_sessions BEGIN
    INSERT INTO etl_touched_error_groups (error_group_id)
    SELECT l.error_group_id
    FROM test_session_result_error_groups l
    JOIN etl_rollup_error_group_impact i ON i.error_group_id = l.error_group_id
    WHERE l.test_session_id = NEW.test_session_id;
    DELETE FROM etl_rollup_test_session_summary WHERE test_session_id = NEW.test_session_id;
END

CREATE TRIGGER etl_touch_updated_results AFTER UPDATE ON test_session_results BEGIN
    INSERT INTO etl_touched_error_groups (error_group_id)
    SELECT l.error_group_id
    FROM test_session_result_error_groups l
    JOIN etl_rollup_error_group_impact i ON i.error_group_id = l.error_group_id
    WHERE l.test_session_id = NEW.test_session_id;
    DELETE FROM etl_rollup_test_session_summary WHERE test_session_id = NEW.test_session_id;
END

CREATE TRIGGER etl_touch_deleted_results AFTER DELETE ON test_session_results BEGIN
    INSERT INTO etl_touched_error_groups (error_group_id)
    SELECT l.error_group_id
    FROM test_session_result_error_groups l
    JOIN etl_rollup_error_group_impact i ON i.error_group_id = l.error_group_id
    WHERE l.test_session_id = OLD.test_session_id;
    DELETE FROM etl_rollup_test_session_summary WHERE test_session_id = OLD.test_session_id;
END

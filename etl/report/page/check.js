// A check's own section: its history, why it failed, and the way to each failure at Checkly.

function checkSection(page, check) {
  const { warehouse } = page;
  const selection = new Selection(warehouse, { ...page.filters, account: null, type: null, check: check.number });
  const own = { ...page, selection };
  const text = (number) => warehouse.texts[number];
  const total = selection.total();
  const flip = selection.flips(() => 0).get(0) || { flips: 0, comparable: 0 };
  const commits = selection.of(page.filters.environment === null ? warehouse.flaky : warehouse.commit_flakiness)[0] || { commit_flaky: 0, commits: 0 };
  const days = Array.from({ length: selection.days }, (_, i) => selection.from + i);
  const seconds = days.map(warehouse.secondsOf);
  const daily = selection.daily((i, columns) => columns.day[i], ["passed_duration_ms_sum", "passed_duration_n"]);
  const of = (name) => days.map((day) => (daily.has(day) ? daily.get(day)[name] : 0));
  const lasted = days.map((day) => (daily.has(day) ? ratio(daily.get(day).passed_duration_ms_sum, daily.get(day).passed_duration_n) : null));
  const open = selection.openStreaks();
  const fixed = selection.fixedStreaks().sort((a, b) => b.recovered_at - a.recovered_at);
  const failures = selection.failures();
  const seen = selection.sums(warehouse.error_daily, ["occurrences"], (i, columns) => columns.error_group_id[i]);
  const groups = [...seen].map(([id, sums]) => ({ ...warehouse.errorById.get(id), here: sums.occurrences })).sort((a, b) => b.here - a.here);
  const verdict = text(check.last_verdict);
  const durations = selection.of(warehouse.regressions);

  return h("section", { id: "check", "aria-labelledby": "check-title", "data-key": text(check.check_key) },
    h("p", {}, h("a", { href: page.back, class: "back" }, "← All checks")),
    h("h2", { id: "check-title", tabindex: "-1" }, foreign(check.name)),
    h("p", { class: "muted facts" },
      badge(verdict === "FAILED" ? "fail" : verdict === "PASSED" ? "pass" : "undecided", verdict ? `last verdict ${verdict}` : "never decided"), " ",
      [check.check_type ? foreign(text(check.check_type)) : null, `first run ${moment(check.first_started_at)}`, `last run ${moment(check.last_started_at)}`,
        warehouse.freshness.length > 1 ? foreign(`account ${warehouse.accountNames.get(check.account_id) ?? NO_DATA}`) : null]
        .filter(Boolean).flatMap((part, i) => [i ? " · " : "", part]), " · key ", h("code", {}, foreign(text(check.check_key)))),
    check.ambiguous ? h("p", { class: "muted", "data-name": "ambiguous", "data-value": check.ambiguous },
      h("b", {}, `${plural(check.ambiguous, "execution")} may be of another check of this name. `),
      "Checks without an id that share a name and a location in one session cannot be told apart, so streaks, flips, commits and durations leave these executions out. ",
      "Give each check its own name, deploy the checks before they are tested, or set export.result_details to failed, which tells their files apart.") : null,
    total.executions ? null : muted(`It did not run ${inDays(own)} under these filters.`),
    tiles(
      tile("pass_rate", "Pass rate", total.pass_rate, percent(total.pass_rate), `${number(total.passed)} of ${number(total.decided)} decided`),
      tile("executions", "Executions", total.executions, number(total.executions), `${number(total.undecided)} undecided`),
      tile("retry_flaky_rate", "Passed on a retry", ratio(total.retry_flaky, total.decided), percent(ratio(total.retry_flaky, total.decided)), `${number(total.retry_flaky)} of ${number(total.decided)} decided`),
      tile("commit_flaky_rate", "Flaky on a commit", ratio(commits.commit_flaky, commits.commits), percent(ratio(commits.commit_flaky, commits.commits)),
        `${number(commits.commit_flaky)} of ${plural(commits.commits, "commit")}, 30 days${page.filters.branch === null ? "" : ", all branches"}`),
      tile("flip_rate", "Flipped", ratio(flip.flips, flip.comparable), percent(ratio(flip.flips, flip.comparable)), `${number(flip.flips)} of ${number(flip.comparable)} comparable`),
      tile("median_time_to_fix_ms", "Half fixed within", percentile(fixed.map((row) => row.time_to_fix_ms), 50),
        duration(percentile(fixed.map((row) => row.time_to_fix_ms), 50)), `${plural(fixed.length, "streak")} ended`)),
    h("div", { class: "pair" },
      executionsChart("check-chart", seconds, total, of),
      chart({ id: "check-duration-chart", title: "Mean duration of passed executions", seconds, format: duration,
        summary: `${duration(ratio(total.passed_duration_ms_sum, total.passed_duration_n))} over all days shown.`,
        series: [{ name: "mean_duration_ms", label: "Mean", colour: "accent", values: lasted }] })),
    h("h3", {}, "Failing now"),
    table({
      id: "check-open", caption: `Open streaks of failures of ${check.name}`, rows: open, empty: "Nothing of it is failing.",
      columns: [
        { name: "since", label: "Failing since", of: (row) => row.first_failed_at, first: "desc", cell: (row) => [h("b", {}, ago(page, row.first_failed_at)), h("span", { class: "muted block" }, moment(row.first_failed_at))] },
        numeric("failures", "In a row"), ...places(page),
        { name: "commit", label: "Since commit", cell: (row) => commitText(page, row.first_failed_commit_id) },
        { name: "link", label: "Last failure", cell: (row) => toCheckly(text(row.link), `last failure, ${moment(row.last_failed_at)}`) },
      ],
    }),
    h("h3", {}, "Recent failures"),
    muted(`${number(failures.length)} of its ${plural(total.failed, "failure")} ${inDays(own)}: the page carries the last ${
      number(warehouse.failures_of_a_check)} of a check, and the last one of each branch, environment and location.`),
    table({
      id: "check-failures", caption: `Recent failures of ${check.name}`, rows: failures, empty: "It did not fail here.", keyOf: (row) => row.started_at,
      columns: [
        { ...time("started_at", "Started"), cell: (row) => [h("span", { class: "nowrap" }, moment(row.started_at)), row.is_new_failure ? [" ", badge("new", "after a pass", "the execution before it passed")] : null] },
        { name: "error", label: "Error", class: "wide", cell: (row) => messagesOf(page, row) },
        ...places(page),
        { name: "commit", label: "Commit", of: (row) => (row.commit_id ? text(row.commit_id) : null), cell: (row) => commitText(page, row.commit_id) },
        numeric("retries", "Retries"), numeric("duration_ms", "Took", duration),
        { name: "link", label: "Result", cell: (row) => toCheckly(text(row.link), `failure of ${moment(row.started_at)}`) },
      ],
    }),
    h("h3", {}, "Its errors"),
    table({
      id: "check-errors", caption: `Errors of ${check.name}`, rows: groups, empty: "No errors here.", keyOf: (row) => text(row.error_group_id),
      columns: [
        { name: "message", label: "Error", class: "wide", of: (row) => text(row.cleaned_error_message), cell: (row) => message(page, row) },
        numeric("here", "Occurrences"),
        { name: "first", label: "First seen", of: (row) => row.first_seen ?? row.first_observed_at, first: "desc", cell: (row) => seenAt("first_seen", row.first_seen, row.first_observed_at) },
        { name: "last", label: "Last seen", of: (row) => row.last_seen ?? row.last_observed_at, first: "desc", cell: (row) => seenAt("last_seen", row.last_seen, row.last_observed_at) },
      ],
    }), leftOut(page, "errors", "error groups (of all checks)"),
    h("h3", {}, "Fixed"),
    table({
      id: "check-fixed", caption: `Streaks of failures of ${check.name} that ended`, rows: fixed, limit: 6, empty: "No streak of failures ended here.",
      columns: [time("recovered_at", "Ended"), numeric("time_to_fix_ms", "Took", duration), numeric("failures", "Failures"), ...places(page),
        { name: "commit", label: "Fixed by commit", cell: (row) => commitText(page, row.recovered_commit_id) }],
    }),
    h("h3", {}, "Duration, this week and the week before"),
    table({
      id: "check-durations", caption: `95th percentile of the duration of ${check.name}`, rows: durations, empty: "No data: nothing passed in the last 14 days.",
      columns: [textColumn(page, "environment", "Environment", "no environment"), textColumn(page, "location", "Location", "no location", "run_location"),
        numeric("recent_p95_duration_ms", "This week (p95)", duration), numeric("recent_n", "Passed"),
        numeric("baseline_p95_duration_ms", "Worst day of the week before (p95)", duration), numeric("baseline_n", "Passed"),
        numeric("ratio", "Times as long", (found) => (found === null ? NO_DATA : `${found.toFixed(2)} ×`))],
    }));
}

const commitText = (page, number) =>
  number ? h("code", { title: page.warehouse.texts[number] }, foreign(shortCommit(page.warehouse.texts[number]))) : none("no commit");

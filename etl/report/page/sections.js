// The sections, in the order in which a reader asks. Each is a function: (page) -> an element.
// page: { warehouse, selection, link(check): href of a check's own section, state }

// --- what rows have in common -------------------------------------------------------------------------------------

function checkLink(page, number, kind = "check") {
  const check = page.warehouse.checks[number];
  return h("a", { href: page.link(check), class: kind }, foreign(check.name),
    check.twin ? h("span", { class: "twin" }, ` · ${check.twin}`) : null,
    check.ambiguous ? [" ", badge("undecided", "ambiguous", `${plural(check.ambiguous, "execution")} may be of another check of this name`)] : null);
}

const checkColumn = (page) => ({
  name: "check", label: "Check", class: "name",
  of: (row) => page.warehouse.checks[row.check].name, cell: (row) => checkLink(page, row.check),
});

// An empty text is one, and not none.
const called = (page, number, nothing) => (number ? page.warehouse.texts[number] || "(empty)" : nothing);

function placeText(page, number, nothing) {
  const text = called(page, number, nothing);
  return number ? foreign(text, text.length <= 24 ? { class: "nowrap" } : { class: "clamp", title: clip(text, 300) }) : h("span", { class: "none nowrap" }, nothing);
}

const textColumn = (page, name, label, nothing, column = name) => ({
  name, label, class: "place", of: (row) => (row[column] ? page.warehouse.texts[row[column]] : null),
  cell: (row) => placeText(page, row[column], nothing),
});

const places = (page) => [
  textColumn(page, "branch", "Branch", "no branch", "branch_name"),
  textColumn(page, "environment", "Environment", "no environment"),
  textColumn(page, "location", "Location", "no location", "run_location"),
];

const numeric = (name, label, format = number) => ({
  name, label, numeric: true, of: (row) => row[name],
  cell: (row) => value(name, row[name], format(row[name]), "td", { class: "n" }),
});

// A moment; with a page given, also how long before its writing that was.
const time = (name, label, page = null) => ({
  name, label, of: (row) => row[name], first: "desc",
  cell: (row) => h("td", { class: "time", "data-name": name, "data-value": row[name] ?? "" },
    row[name] === null ? none() : h("span", { class: "nowrap" }, moment(row[name])),
    page && row[name] !== null ? h("span", { class: "muted block" }, `${ago(page, row[name])} before writing`) : null),
});

const ago = (page, seconds) => age(Math.max(0, page.warehouse.written_at - seconds));

// The message of an error group: three lines of it, the rest on demand.
function message(page, error, length = 240) {
  const text = page.warehouse.texts[error.cleaned_error_message];
  if (!text) return none("no message");
  if (text.length <= length) return foreign(text, { class: "message" });
  return h("details", { class: "message" }, h("summary", {}, foreign(clip(text, length))), foreign(text, { tabindex: "0", role: "group", "aria-label": "The whole message" }));
}

function messagesOf(page, failure) {
  if (!failure) return none("not on this page");
  if (!failure.errors.length) return none("no error group");
  const [first, ...others] = failure.errors.filter((id) => id).map((id) => page.warehouse.errorById.get(id));
  if (!first) return none("not on this page");
  return [message(page, first, 120), others.length ? h("span", { class: "muted block" }, `and ${plural(others.length, "more error")}`) : null];
}

const inDays = (page) => (page.selection.days === 1 ? "today" : `in the last ${number(page.selection.days)} days`);
const ofDays = (page) => (page.selection.days === 1 ? "of today" : `of the last ${number(page.selection.days)} days`);

// A count of rows of which the page does not carry all.
const atLeast = (page, name, text) => (page.warehouse.left_out[name] ? `${text} or more` : text);

const leftOut = (page, name, what) =>
  page.warehouse.left_out[name] ? muted(`${number(page.warehouse.left_out[name])} more ${what} are in the warehouse; this page does not carry them.`) : null;

// Executions by what became of them; of(name): a count for each of the days.
function executionsChart(id, seconds, total, of) {
  const part = (name, label, colour) => ({ name, label, colour, values: of(name) });
  return chart({ id, title: "Executions a day", stacked: true, seconds,
    summary: `${number(total.passed)} passed, ${number(total.failed)} failed, ${number(total.undecided)} undecided.`,
    series: [part("passed", "Passed", "pass"), part("failed", "Failed", "fail"), part("undecided", "Undecided", "undecided")] });
}

// --- 1 ------------------------------------------------------------------------------------------------------------

function trust(page) {
  const { warehouse, selection } = page;
  const rows = warehouse.freshness.filter((row) => selection.account === null || row.account_id === selection.account);
  const dead = warehouse.dead.filter((row) => selection.account === null || row.account_id === selection.account);
  const problems = rows.flatMap((row) => problemsOf(page, row));
  const worst = problems.some(({ level }) => level === "bad") ? "bad" : problems.length ? "warn" : "good";
  const words = {
    good: `Yes. When this page was written, ${wellBeing(page, rows)}.`,
    warn: "Mostly. When this page was written:", bad: "Not quite. When this page was written:",
  };
  return section("trust", "Can I trust it?", null,
    h("div", { class: `verdict ${worst}`, "data-level": worst }, h("p", {}, h("b", {}, words[worst])),
      problems.length ? h("ul", {}, problems.map(({ text }) => h("li", {}, text))) : null),
    table({
      id: "trust-accounts", caption: "Accounts: how fresh and how complete", rows, keyOf: (row) => warehouse.texts[row.account_id] || "",
      columns: [
        { name: "account", label: "Account", class: "name", of: (row) => warehouse.accountNames.get(row.account_id),
          cell: (row) => foreign(warehouse.accountNames.get(row.account_id)) },
        time("last_success_at", "Last success", page),
        time("newest_started_at", "Newest test session", page),
        { ...numeric("test_sessions", "Exported"), cell: (row) => h("td", { class: "n" },
          value("test_sessions", row.test_sessions, number(row.test_sessions)),
          row.oldest_started_at === null ? null : h("span", { class: "muted block" }, `since ${isoDay(row.oldest_started_at)}`)) },
        numeric("coverage", "Of what is known", percent),
        { ...numeric("due", "Due now"), cell: (row) => h("td", { class: "n" }, value("due", row.due, number(row.due)),
          row.oldest_due_at === null ? null : h("span", { class: "muted block nowrap" }, `for ${ago(page, row.oldest_due_at)}`)) },
        numeric("scheduled", "Later"),
        numeric("leased", "In progress"),
        numeric("dead", "Dead letters"),
        { name: "hours_until_loss", label: "Until loss", numeric: true, of: (row) => row.hours_until_loss,
          cell: (row) => h("td", { class: "n", "data-name": "hours_until_loss", "data-value": row.hours_until_loss ?? "" },
            row.hours_until_loss !== null ? loss(row.hours_until_loss) : none(row.unexported ? "unknown" : "nothing waits")) },
      ],
    }),
    dead.length ? h("details", { class: "dead" },
      h("summary", {}, `${plural(rows.reduce((sum, row) => sum + row.dead, 0), "dead letter")}: what could not be exported, and why`),
      muted("checkly-etl dead show ID says what to do; dead retry ID or dead discard ID does it."),
      table({
        id: "trust-dead", caption: "Dead letters", rows: dead, keyOf: (row) => warehouse.texts[row.test_session_id],
        columns: [
          { name: "test_session", label: "Test session", cell: (row) => h("code", {}, warehouse.texts[row.test_session_id]) },
          textColumn(page, "kind", "Kind", NO_DATA, "error_kind"),
          textColumn(page, "reason", "Reason", NO_DATA, "last_error"),
          time("last_error_at", "When"),
        ],
      }), leftOut(page, "dead", "dead letters")) : null);
}

const loss = (hours) => (hours > 0 ? duration(hours * 3_600_000) : `${duration(-hours * 3_600_000)} too late`);

function wellBeing(page, rows) {
  const oldest = Math.min(...rows.map((row) => row.last_success_at ?? Infinity));
  const unexported = rows.reduce((sum, row) => sum + row.unexported, 0);
  return [
    oldest === Infinity ? null : `the last successful export was ${ago(page, oldest)} old`,
    unexported ? `${plural(unexported, "known test session")} waited to be exported, none for long` : "every known test session was exported",
  ].filter(Boolean).join(" and ");
}

const HOUR = 3600;

function problemsOf(page, row) {
  const name = page.warehouse.freshness.length > 1 ? [foreign(page.warehouse.accountNames.get(row.account_id)), ": "] : [];
  const found = [];
  const add = (level, ...text) => found.push({ level, text: [...name, ...text] });
  if (row.hours_until_loss !== null && row.hours_until_loss < page.warehouse.loss_warning_hours) {
    add("bad", row.hours_until_loss > 0
      ? `Checkly deletes a test session in ${duration(row.hours_until_loss * 3_600_000)} that is not exported yet. Run checkly-etl status.`
      : `Checkly may have deleted a test session ${duration(-row.hours_until_loss * 3_600_000)} ago that was not exported. Run checkly-etl status.`);
  }
  if (row.account_id && row.last_success_at === null) add("warn", "no pass has succeeded yet. Run checkly-etl doctor.");
  else if (row.account_id && page.warehouse.written_at - row.last_success_at > DAY) {
    add("warn", `the last successful export was ${ago(page, row.last_success_at)} old: newer test sessions are missing.`);
  }
  if (row.account_id && row.failed_runs) add("warn", `${plural(row.failed_runs, "run")} had failed since the last success. Run checkly-etl status.`);
  if (row.account_id && row.due && page.warehouse.written_at - row.oldest_due_at > HOUR) {
    add(page.warehouse.written_at - row.oldest_due_at > DAY ? "bad" : "warn", `${plural(row.due, "test session")} waited to be exported, the oldest for ${ago(page, row.oldest_due_at)}. Run checkly-etl sync.`);
  }
  if (row.dead) add("warn", `${plural(row.dead, "test session")} could not be exported (dead letters, below).`);
  if (!row.account_id && row.due) add("warn", `${plural(row.due, "id")} not assigned to an account yet.`);
  return found;
}

// --- 2 ------------------------------------------------------------------------------------------------------------

function verdicts(page) {
  const { warehouse, selection } = page;
  const total = selection.total();
  const before = selection.before() && selection.before().total();
  const days = Array.from({ length: selection.days }, (_, i) => selection.from + i);
  const seconds = days.map(warehouse.secondsOf);
  const daily = selection.daily((i, columns) => columns.day[i]);
  const of = (name) => days.map((day) => (daily.has(day) ? daily.get(day)[name] : name === "pass_rate" ? null : 0));
  const sessions = selection.sums(warehouse.sessions, ["test_sessions"], (i, columns) => columns.verdict[i]);
  const [all, failed] = [[...sessions.values()], [...sessions].filter(([verdict]) => warehouse.texts[verdict] === "FAILED")
    .map(([, sums]) => sums)].map((sums) => sums.reduce((sum, { test_sessions }) => sum + test_sessions, 0));
  const said = [...sessions].map(([verdict, { test_sessions }]) => `${number(test_sessions)} ${warehouse.texts[verdict]}`);
  const open = selection.openStreaks();
  const change = before && before.pass_rate !== null && total.pass_rate !== null ? total.pass_rate - before.pass_rate : null;
  return section("verdicts", "Verdicts and pass rate",
    `Executions (a check with its retries) that started ${inDays(page)}. Rates count decided ones: a FINAL that passed or failed.`,
    tiles(
      tile("pass_rate", "Pass rate", total.pass_rate, percent(total.pass_rate),
        change === null ? `${number(total.passed)} of ${number(total.decided)} decided`
          : `${change >= 0 ? "+" : "−"}${Math.abs(change * 100).toFixed(1)} points to the ${number(selection.days)} days before`),
      tile("executions", "Executions", total.executions, number(total.executions), `${number(total.undecided)} undecided`),
      tile("failed", "Failed", total.failed, number(total.failed), `${number(total.errored)} of them because the run broke`),
      tile("failing_now", "Failing now", open.length, atLeast(page, "open_streaks", number(open.length)), "a check, branch, environment and location each"),
      tile("retry_flaky", "Passed on a retry", total.retry_flaky, number(total.retry_flaky), `${percent(ratio(total.retry_flaky, total.decided))} of decided`),
      tile("retry_cost_ms", "Spent on retries", total.retry_cost_ms, duration(total.retry_cost_ms), "run time of attempts that failed"),
      selection.type === null && selection.check === null
        ? tile("test_sessions", "Test sessions", all, number(all), all ? `${number(failed)} with a failure` : null) : null),
    h("div", { class: "pair" },
      executionsChart("verdicts-chart", seconds, total, of),
      chart({ id: "pass-rate-chart", title: "Pass rate a day", seconds, format: percent, axisFormat: wholePercent, range: floorOf(of("pass_rate")),
        summary: `${percent(total.pass_rate)} over all days shown.`,
        series: [{ name: "pass_rate", label: "Pass rate", colour: "accent", values: of("pass_rate") }] })),
    said.length && selection.type === null && selection.check === null ? muted(`Test sessions by verdict: ${said.join(", ")}.`) : null);
}

// The axis of rates begins below the lowest one, at a round figure.
function floorOf(rates) {
  const lowest = Math.min(1, ...rates.filter((one) => one !== null));
  return [Math.max(0, Math.floor((lowest - 0.001) * 10) / 10), 1.005];
}

// --- 3 ------------------------------------------------------------------------------------------------------------

function failing(page) {
  const rows = page.selection.openStreaks();
  const isNew = (row) => page.warehouse.written_at - row.first_failed_at < DAY;
  const fresh = rows.filter(isNew).length;
  return section("failing", "Failing now, and since when",
    `Checks whose last decided execution failed, on a branch, in an environment and location, ${inDays(page)}; new failures first.`,
    rows.length ? h("p", { "data-name": "failing", "data-value": rows.length }, h("b", {}, atLeast(page, "open_streaks", plural(rows.length, "streak"))), " of failures ",
      rows.length === 1 ? "is" : "are", " open, ", h("b", {}, number(fresh)), " of them began in the last 24 hours.") : null,
    table({
      id: "failing-now", caption: "Checks that fail now", rows, limit: 12, empty: page.selection.total().decided ? "Nothing is failing here." : "No data: nothing was decided here.",
      columns: [
        checkColumn(page),
        { name: "since", label: "Failing since", of: (row) => row.first_failed_at, first: "desc",
          cell: (row) => h("td", { class: "time", "data-name": "first_failed_at", "data-value": row.first_failed_at },
            h("span", { class: "nowrap" }, h("b", {}, ago(page, row.first_failed_at)), " ",
              isNew(row) ? badge("new", "new", "began in the last 24 hours") : null), h("span", { class: "muted block nowrap" }, moment(row.first_failed_at))) },
        numeric("failures", "In a row"),
        ...places(page),
        { name: "error", label: "Error", class: "wide", cell: (row) => messagesOf(page, page.warehouse.lastFailureOf(row)) },
        { name: "last", label: "Last failure", of: (row) => row.last_failed_at, first: "desc",
          cell: (row) => [h("span", { class: "nowrap" }, moment(row.last_failed_at)), h("span", { class: "block" },
            toCheckly(page.warehouse.texts[row.link], `last failure of ${page.warehouse.checks[row.check].name}`))] },
      ],
    }), leftOut(page, "open_streaks", "streaks"));
}

// --- 4 ------------------------------------------------------------------------------------------------------------

function flaky(page) {
  const { selection } = page;
  const meanings = flakyMeanings(page);
  const list = ({ id, title, note, rows, hits, n }) => {
    const found = rows.filter((row) => row[hits] > 0).sort((a, b) => lowerBound(b[hits], b[n]) - lowerBound(a[hits], a[n]) || a.check - b.check);
    return h("div", { class: "card" }, h("h3", {}, title), muted(note), table({
      id, caption: title, rows: found, limit: 8, keyOf: (row) => page.warehouse.texts[page.warehouse.checks[row.check].check_key],
      empty: rows.some((row) => row[n] > 0) ? "None." : "No data: nothing here had the chance.",
      columns: [checkColumn(page), { name: "rate", label: "Rate", of: (row) => ratio(row[hits], row[n]), first: "desc",
        cell: (row) => rate("rate", row[hits], row[n]) }],
    }));
  };
  return section("flaky", "Flakiest checks, in three meanings",
    "Ordered by the lower end of each rate's 99 % interval, so that 1 of 1 does not stand above 40 of 100.",
    h("div", { class: "three" },
      list({ ...meanings.retry, id: "flaky-retry", title: "Passed only on a retry", hits: "retry_flaky", n: "decided",
        note: `Of the decided executions ${ofDays(page)}.` }),
      list({ ...meanings.commit, id: "flaky-commit", title: "Passed and failed on one commit", hits: "commit_flaky", n: "commits",
        note: `Of the commits with two decided executions in one place. Always the last 30 days${selection.branch === null ? "" : " and all branches"}.` }),
      list({ ...meanings.flip, id: "flaky-flip", title: "Flipped", hits: "flips", n: "comparable",
        note: `Of the decided executions ${ofDays(page)} that have one before them: another verdict than that one.` })));
}

function flakyMeanings(page) {
  const { warehouse, selection } = page;
  const byCheck = (i, columns) => columns.check[i];
  const rowsOfSums = (sums) => [...sums].map(([check, row]) => ({ check, ...row }));
  const commits = selection.environment === null ? warehouse.flaky : warehouse.commit_flakiness;
  return {
    retry: { rows: rowsOfSums(selection.daily(byCheck, ["retry_flaky"])) },
    commit: { rows: selection.of(commits) },
    flip: { rows: rowsOfSums(selection.flips(byCheck)) },
  };
}

// --- 5 ------------------------------------------------------------------------------------------------------------

function slower(page) {
  const comparable = page.selection.of(page.warehouse.regressions).filter((row) => row.ratio !== null);
  const rows = comparable.filter((row) => row.ratio > 1).sort((a, b) => b.ratio - a.ratio || a.check - b.check);
  const most = Math.max(1, ...rows.map((row) => row.ratio));
  return section("slower", "Slower than last week",
    `95th percentile of passed executions, all branches: the last 7 days beside the worst single day of the 7 before. ${
      comparable.length ? `${number(rows.length)} of ${number(comparable.length)} that can be compared got slower.` : ""}`,
    table({
      id: "slower-checks", caption: "Checks that got slower", rows, empty: comparable.length ? "Nothing got slower." : "No data: nothing passed in both weeks.",
      columns: [
        checkColumn(page),
        { name: "ratio", label: "Times as long", numeric: true, of: (row) => row.ratio, cell: (row) => {
          const bar = h("span", { class: "bar slow", "aria-hidden": "true" }, h("span"));
          bar.firstChild.style.width = `${((row.ratio - 1) / (most - 1)) * 100}%`;
          return h("td", { class: "n", "data-name": "ratio", "data-value": row.ratio }, bar, h("b", {}, `${row.ratio.toFixed(2)} ×`));
        } },
        numeric("recent_p95_duration_ms", "This week", duration),
        numeric("baseline_p95_duration_ms", "Week before", duration),
        { name: "sample", label: "Sample", of: (row) => Math.min(row.recent_n, row.baseline_n), numeric: true,
          cell: (row) => h("td", { class: "n muted" }, `${number(row.recent_n)} / ${number(row.baseline_n)} on ${plural(row.baseline_days, "day")}`) },
        textColumn(page, "environment", "Environment", "no environment"),
        textColumn(page, "location", "Location", "no location", "run_location"),
      ],
    }));
}

// --- 6 ------------------------------------------------------------------------------------------------------------

function errors(page) {
  const { warehouse, selection } = page;
  const here = selection.sums(warehouse.error_daily, ["occurrences"], (i, columns) => columns.error_group_id[i]);
  const where = new Map();
  selection.sums(warehouse.error_daily, ["occurrences"], (i, columns) => {
    const found = where.get(columns.error_group_id[i]) || { checks: new Map(), branches: new Set(), environments: new Set() };
    where.set(columns.error_group_id[i], found);
    const check = columns.check[i];
    if (check !== -1) found.checks.set(check, (found.checks.get(check) || 0) + columns.occurrences[i]);
    found.branches.add(columns.branch_name[i]);
    found.environments.add(columns.environment[i]);
    return null;
  });
  const rows = warehouse.errors.filter((row) => here.has(row.error_group_id))
    .map((row) => ({ ...row, here: here.get(row.error_group_id).occurrences, where: where.get(row.error_group_id) }))
    .sort((a, b) => b.here - a.here);
  return section("errors", "Errors by impact",
    `Error groups seen ${inDays(page)}, by the results that they were seen in (each attempt on its own). What is called ever, and first and last seen as Checkly says it, is of all time and places.`,
    table({
      id: "errors-groups", caption: "Error groups", rows, limit: 8, empty: "No errors here.", keyOf: (row) => warehouse.texts[row.error_group_id],
      columns: [
        { name: "message", label: "Error", class: "wide", of: (row) => warehouse.texts[row.cleaned_error_message] || null,
          cell: (row) => [message(page, row), row.is_new || row.is_regression ? h("span", { class: "block" },
            row.is_new ? badge("new", "new", "first observed in the last 7 days") : null,
            row.is_regression ? badge("back", "back again", "seen in the last 7 days, after 7 or more days without") : null) : null] },
        { ...numeric("here", "Occurrences"), cell: (row) => h("td", { class: "n" }, value("here", row.here, number(row.here), "b"),
          h("span", { class: "muted block" }, "of ", value("occurrences", row.occurrences, number(row.occurrences)), " ever")) },
        { ...numeric("test_sessions", "Test sessions"), cell: (row) => h("td", { class: "n" }, value("test_sessions", row.test_sessions, number(row.test_sessions)),
          h("span", { class: "muted block" }, "ever")) },
        { name: "where", label: "Where", of: (row) => row.where.checks.size, first: "desc", cell: (row) => whereOf(page, row.where) },
        { name: "first", label: "First seen", of: (row) => row.first_seen ?? row.first_observed_at, first: "desc",
          cell: (row) => seenAt("first_seen", row.first_seen, row.first_observed_at) },
        { name: "last", label: "Last seen", of: (row) => row.last_seen ?? row.last_observed_at, first: "desc",
          cell: (row) => seenAt("last_seen", row.last_seen, row.last_observed_at) },
      ],
    }), leftOut(page, "errors", "error groups"));
}

// Checkly's word for it, else when it was first or last seen in a result of the warehouse.
const seenAt = (name, seen, observed) => h("td", { class: "time", "data-name": name, "data-value": seen ?? "" },
  moment(seen ?? observed), seen === null ? h("span", { class: "muted block" }, "in the warehouse") : null);

function whereOf(page, { checks, branches, environments }) {
  const top = [...checks].sort(([a, n], [b, m]) => m - n || a - b);
  const names = (numbers, nothing) => {
    const list = [...numbers].slice(0, 3).flatMap((one, i) => [i ? ", " : "", one ? foreign(clip(called(page, one), 40)) : nothing]);
    return numbers.size > 3 ? [...list, ` and ${number(numbers.size - 3)} more`] : list;
  };
  return [
    h("span", { class: "block" }, top.slice(0, 2).flatMap(([check], i) => [i ? ", " : "", checkLink(page, check, "inline")]),
      top.length > 2 ? ` and ${plural(top.length - 2, "more check")}` : top.length ? "" : none("no check")),
    h("span", { class: "muted block" }, names(branches, "no branch"), " · ", names(environments, "no environment")),
  ];
}

// --- 7 ------------------------------------------------------------------------------------------------------------

function fixes(page) {
  const { warehouse, selection } = page;
  const rows = selection.fixedStreaks();
  const times = rows.map((row) => row.time_to_fix_ms);
  const days = Array.from({ length: selection.days }, (_, i) => selection.from + i);
  const byDay = new Map();
  for (const row of rows) {
    const day = Math.floor((row.recovered_at - warehouse.secondsOf(0)) / DAY);
    byDay.set(day, [...(byDay.get(day) || []), row.time_to_fix_ms]);
  }
  const longest = [...rows].sort((a, b) => b.time_to_fix_ms - a.time_to_fix_ms);
  return section("fixes", "Time to fix",
    `From the first failure of a streak to the first pass after it, for streaks that ended ${inDays(page)}.`,
    rows.length ? tiles(
      tile("fixed", "Fixed", rows.length, atLeast(page, "fixed_streaks", number(rows.length)), "streaks of failures"),
      tile("median_time_to_fix_ms", "Half within", percentile(times, 50), duration(percentile(times, 50)), "median"),
      tile("p90_time_to_fix_ms", "Nine of ten within", percentile(times, 90), duration(percentile(times, 90)), "90th percentile"),
      tile("failures_until_fixed", "Failures until then", percentile(rows.map((row) => row.failures), 50),
        number(percentile(rows.map((row) => row.failures), 50)), "median of a streak")) : null,
    rows.length ? h("div", { class: "pair" },
      chart({ id: "fixes-chart", title: "Streaks that ended, a day", stacked: true, seconds: days.map(warehouse.secondsOf),
        summary: `${plural(rows.length, "streak")} ended.`,
        series: [{ name: "fixed", label: "Fixed", colour: "pass", values: days.map((day) => (byDay.get(day) || []).length) }] }),
      chart({ id: "fix-time-chart", title: "Median time to fix, by the day of the fix", seconds: days.map(warehouse.secondsOf),
        format: duration, summary: `${duration(percentile(times, 50))} over all days shown.`,
        series: [{ name: "median_ms", label: "Median", colour: "accent", values: days.map((day) => percentile(byDay.get(day) || [], 50)) }] })) : null,
    table({
      id: "fixes-longest", caption: "Streaks that took longest to fix", rows: longest, limit: 6, empty: "No streak of failures ended here.",
      columns: [checkColumn(page), numeric("time_to_fix_ms", "Took", duration), numeric("failures", "Failures"),
        time("first_failed_at", "Began"), time("recovered_at", "Ended"), ...places(page)],
    }), leftOut(page, "fixed_streaks", "streaks"));
}

// --- 8 ------------------------------------------------------------------------------------------------------------

let heatShown = 30;

function heat(page) {
  const { warehouse, selection } = page;
  const cells = new Map();
  const { days: every } = warehouse;
  for (const [key, sums] of selection.daily((i, columns) => columns.check[i] * every + columns.day[i])) {
    const check = Math.floor(key / every);
    if (!cells.has(check)) cells.set(check, { check, failed: 0, decided: 0, days: new Map() });
    const row = cells.get(check);
    row.failed += sums.failed;
    row.decided += sums.decided;
    row.days.set(key % every, sums);
  }
  const rows = [...cells.values()].sort((a, b) => b.failed - a.failed || warehouse.checks[a.check].name.localeCompare(warehouse.checks[b.check].name, "en"));
  const first = Math.max(selection.from, warehouse.days - 62);
  const days = Array.from({ length: warehouse.days - first }, (_, i) => first + i);
  const holder = h("div");
  function draw() {
    holder.replaceChildren(rows.length ? scrollable("Checks by day", h("table", { id: "heat-strip", class: days.length < 20 ? "heat" : "heat full", "data-rows": rows.length },
      h("caption", { class: "unseen" }, "Checks by day: failed and decided executions"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Check"), days.map((day, i) => {
        const second = warehouse.secondsOf(day);
        const isShown = i === 0 || new Date(second * 1000).getUTCDay() === 1;
        return h("th", { scope: "col", title: isoDay(second) }, h("span", { class: "unseen" }, isoDay(second)),
          isShown ? h("span", { class: "tick", "aria-hidden": "true" }, shortDay(second)) : null);
      }))),
      h("tbody", {}, rows.slice(0, heatShown).map((row) => h("tr", { "data-key": warehouse.texts[warehouse.checks[row.check].check_key] },
        h("th", { scope: "row", class: "name" }, checkLink(page, row.check)), days.map((day) => heatCell(row.days.get(day), warehouse.secondsOf(day)))))))) : muted("No executions here."));
    if (rows.length > heatShown) {
      const step = Math.min(100, rows.length - heatShown);
      holder.append(h("p", { class: "controls" }, h("button", { type: "button", class: "more", onclick: () => {
        heatShown += step;
        draw();
        (holder.querySelector("button.more") || holder.querySelector(".scroll")).focus();
        announce(`${Math.min(heatShown, rows.length)} of ${rows.length} checks shown`);
      } }, `Show ${number(step)} more`), h("span", { class: "muted" }, ` ${number(heatShown)} of ${number(rows.length)} checks`)));
    }
  }
  draw();
  return section("heat", "Day by day",
    `The checks with the most failures first. The figure in a cell is how many executions failed${first > selection.from ? "; the last 62 days" : ""}.`,
    h("p", { class: "key" }, [["none", "no data"], ["undecided", "undecided"], ["pass", "all passed"], ["some", "some failed"], ["half", "half or more failed"], ["fail", "all failed"]]
      .map(([kind, label]) => h("span", {}, h("span", { class: `cell ${kind}`, "aria-hidden": "true" }), label))), holder);
}

function heatKind(sums) {
  if (!sums) return "none";
  if (!sums.decided) return "undecided";
  if (!sums.failed) return "pass";
  if (!sums.passed) return "fail";
  return sums.failed * 2 >= sums.decided ? "half" : "some";
}

function heatCell(sums, second) {
  const kind = heatKind(sums);
  const text = kind === "none" ? NO_DATA : kind === "undecided" ? `${number(sums.executions)} undecided` : `${number(sums.failed)} of ${number(sums.decided)} failed`;
  return h("td", { class: `cell ${kind}`, title: `${isoDay(second)}: ${text}` },
    kind === "none" ? h("span", { class: "unseen" }, NO_DATA)
      : [h("span", { "aria-hidden": "true" }, sums.failed ? (sums.failed > 99 ? "99+" : sums.failed) : ""), h("span", { class: "unseen" }, text)]);
}

// --- 9 ------------------------------------------------------------------------------------------------------------

function compared(page) {
  const { warehouse, selection } = page;
  const rows = new Map();
  const environments = new Map();
  for (const [key, sums] of selection.daily((i, columns) => columns.branch_name[i] * 1e7 + columns.environment[i])) {
    const [branch, environment] = [Math.floor(key / 1e7), key % 1e7];
    if (!rows.has(branch)) rows.set(branch, { branch_name: branch, executions: 0, passed: 0, failed: 0, cells: new Map() });
    const row = rows.get(branch);
    row.executions += sums.executions;
    row.passed += sums.passed;
    row.failed += sums.failed;
    row.cells.set(environment, sums);
    environments.set(environment, (environments.get(environment) || 0) + sums.executions);
  }
  const list = [...rows.values()].sort((a, b) => b.executions - a.executions);
  const across = [...environments].sort(([, a], [, b]) => b - a).map(([environment]) => environment);
  const passRate = (name, sums) => (sums ? rate(name, sums.passed, sums.passed + sums.failed, { hasBar: false }) : none());
  return section("places", "Branches and environments beside each other",
    `Pass rate of the decided executions ${ofDays(page)}; the branches with the most executions first.`,
    table({
      id: "places-rates", caption: "Pass rate by branch and environment", rows: list, empty: "No executions here.",
      keyOf: (row) => warehouse.texts[row.branch_name] ?? "",
      columns: [
        { ...textColumn(page, "branch", "Branch", "no branch", "branch_name"), class: "name" },
        numeric("executions", "Executions"),
        ...(across.length > 1 ? [{ name: "all", label: "All environments", of: (row) => ratio(row.passed, row.passed + row.failed), cell: (row) => passRate("all", row) }] : []),
        ...across.slice(0, 8).map((environment) => ({
          name: `environment-${environment}`, label: clip(called(page, environment, "no environment"), 30),
          of: (row) => row.cells.get(environment)?.pass_rate ?? null, cell: (row) => passRate("pass_rate", row.cells.get(environment)),
        })),
      ],
    }), across.length > 8 ? muted(`${number(across.length - 8)} more environments have fewer executions; filter by one to see it.`) : null,
    warehouse.left_out.branches ? muted(`${number(warehouse.left_out.branches)} branches with few executions are counted as one here; the warehouse knows each.`) : null);
}

const SECTIONS = [
  { id: "trust", label: "Trust", make: trust },
  { id: "verdicts", label: "Verdicts", make: verdicts },
  { id: "failing", label: "Failing now", make: failing },
  { id: "flaky", label: "Flaky", make: flaky },
  { id: "slower", label: "Slower", make: slower },
  { id: "errors", label: "Errors", make: errors },
  { id: "fixes", label: "Time to fix", make: fixes },
  { id: "heat", label: "Day by day", make: heat },
  { id: "places", label: "Branches", make: compared },
];

// The views' rows, and what a filter leaves of them. A text is known by its number in `texts`; 0 is null.

async function unpack() {
  const bytes = Uint8Array.from(atob(document.getElementById("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Response(bytes).body.pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// Columns -> an array of rows.
function rowsOf(columns) {
  const names = Object.keys(columns);
  const count = names.length ? columns[names[0]].length : 0;
  return Array.from({ length: count }, (_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
}

class Warehouse {
  constructor(data) {
    Object.assign(this, data);
    const start = Date.parse(`${data.first_day}T00:00:00Z`) / 1000;
    this.secondsOf = (day) => start + day * DAY;
    for (const name of ["freshness", "dead", "open_streaks", "fixed_streaks", "flaky", "commit_flakiness",
      "regressions", "errors", "failures"]) {
      this[name] = rowsOf(data[name]);
    }
    this.sessionsKnown = this.freshness.reduce((sum, row) => sum + row.test_sessions, 0);
    this.errorById = new Map(this.errors.map((row) => [row.error_group_id, row]));
    this.accountNames = new Map(this.freshness.map((row) => [row.account_id,
      this.texts[row.account_name] || this.texts[row.account_id] || "(no account yet)"]));
    this.checks = rowsOf(data.checks).map((row, number) => ({ number, ...row, name: this._nameOf(row) }));
    this._tellTwinsApart();
    this.hasData = [data.daily, data.sessions, data.error_daily].some(({ day = [] }) => day.some((one) => one < this.days));
    // The newest failure of each history says why it fails now: failures come newest first.
    this.lastFailures = new Map();
    for (const row of this.failures) {
      const key = this._history(row);
      if (!this.lastFailures.has(key)) this.lastFailures.set(key, row);
    }
  }

  _nameOf(check) {
    return this.texts[check.check_name] || this.texts[check.check_key];
  }

  // What stands behind the name of a check that has it in common with others: their ids, types, projects or accounts,
  // whatever differs.
  _tellTwinsApart() {
    const twins = new Map();
    for (const check of this.checks) twins.set(check.name, [...(twins.get(check.name) || []), check]);
    const ways = [
      (check) => (/^[0-9a-f]{8}-/.test(this.texts[check.check_key]) ? this.texts[check.check_key].slice(0, 8) : "without an id"),
      (check) => this.texts[check.check_type] || "no type",
      (check) => this.accountNames.get(check.account_id) ?? NO_DATA,
      (check) => this.texts[check.check_key],
    ];
    for (const same of twins.values()) {
      for (const check of same) check.twin = "";
      if (same.length === 1) continue;
      const differ = (labels) => new Set(labels).size === same.length;
      const used = ways.filter((way) => new Set(same.map(way)).size > 1);
      const one = used.find((way) => differ(same.map(way)));
      for (const check of same) check.twin = clip(one ? one(check) : used.map((way) => way(check)).join(", "), 40);
    }
  }

  _history(row) {
    return [row.check, row.branch_name, row.environment, row.run_location].join(" ");
  }

  // The failure that a streak ended with, if the page has it: another one would tell another reason.
  lastFailureOf(streak) {
    const failure = this.lastFailures.get(this._history(streak));
    return failure && failure.started_at === streak.last_failed_at ? failure : null;
  }
}

// What is to be seen: numbers of texts (null: all), the first day, perhaps one check.
class Selection {
  constructor(warehouse, { account = null, environment = null, branch = null, type = null, days, check = null }) {
    Object.assign(this, { account, environment, branch, type, check });
    this.from = Math.max(0, warehouse.days - days);
    this.to = warehouse.days;
    this.since = warehouse.secondsOf(this.from);
    this.until = warehouse.secondsOf(this.to);
    this.days = this.to - this.from;
    this.hasCheck = warehouse.checks.map((row) =>
      check !== null ? row.number === check
        : (account === null || row.account_id === account) && (type === null || row.check_type === type));
    this.warehouse = warehouse;
    this._numbers = new Map();
  }

  // Rows: those of a table that the filters leave. Columns that the table lacks do not filter.
  of(rows) {
    return rows.filter((row) =>
      (row.check === undefined || this._matches(row.check, row.account_id))
      && (row.check !== undefined || row.account_id === undefined || this.account === null
        || row.account_id === this.account)
      && (this.environment === null || row.environment === undefined || row.environment === this.environment)
      && (this.branch === null || row.branch_name === undefined || row.branch_name === this.branch));
  }

  _matches(check, account) {
    // A result outside of any execution has no check: it is seen where no check or type is asked for.
    return check === -1 ? this.type === null && this.check === null && (this.account === null || account === this.account)
      : this.hasCheck[check];
  }

  _isIn(seconds) {
    return seconds >= this.since && seconds < this.until;
  }

  // The numbers of the rows of a table of days that the filters leave. Sections ask again and again: found once.
  _numbersIn(columns) {
    if (!this._numbers.has(columns)) {
      const { check, account_id: account, branch_name: branch, environment, day = [] } = columns;
      const found = [];
      for (let i = 0; i < day.length; i++) {
        if (day[i] < this.from || day[i] >= this.to
          || (this.branch !== null && branch[i] !== this.branch)
          || (this.environment !== null && environment[i] !== this.environment)
          || (check ? !this._matches(check[i], account && account[i]) : this.account !== null && account[i] !== this.account)) continue;
        found.push(i);
      }
      this._numbers.set(columns, found);
    }
    return this._numbers.get(columns);
  }

  // Adds up a table of counts: key of a row -> its sums. keyOf(i, columns) may give null for "not this one".
  sums(columns, names, keyOf) {
    const found = new Map();
    const added = names.map((name) => columns[name]);
    for (const i of this._numbersIn(columns)) {
      const key = keyOf(i, columns);
      if (key === null) continue;
      let sums = found.get(key);
      if (!sums) found.set(key, (sums = Object.fromEntries(names.map((name) => [name, 0]))));
      for (let n = 0; n < names.length; n++) sums[names[n]] += added[n][i];
    }
    return found;
  }

  // Executions by a key, with their rates; `more`: what else to add up.
  daily(keyOf, more = []) {
    const found = this.sums(this.warehouse.daily, ["executions", "passed", "failed", ...more], keyOf);
    for (const sums of found.values()) complete(sums);
    return found;
  }

  total() {
    const more = ["errored", "retry_flaky", "retry_cost_ms", "passed_duration_ms_sum", "passed_duration_n"];
    const nothing = Object.fromEntries(["executions", "passed", "failed", ...more].map((name) => [name, 0]));
    return this.daily(() => 0, more).get(0) || complete(nothing);
  }

  flips(keyOf) {
    return this.sums(this.warehouse.flips, ["comparable", "flips"], keyOf);
  }

  openStreaks() {
    return this.of(this.warehouse.open_streaks).filter((row) => this._isIn(row.last_failed_at));
  }

  fixedStreaks() {
    return this.of(this.warehouse.fixed_streaks).filter((row) => this._isIn(row.recovered_at));
  }

  failures() {
    return this.of(this.warehouse.failures).filter((row) => this._isIn(row.started_at));
  }

  // The same days before these, if the page has them all.
  before() {
    if (this.from < this.days || this.days === 1) return null; // today is not over: no match for a whole day
    const earlier = Object.create(this);
    return Object.assign(earlier, { from: this.from - this.days, to: this.from, _numbers: new Map() });
  }
}

function complete(sums) {
  sums.decided = sums.passed + sums.failed;
  sums.undecided = sums.executions - sums.decided;
  sums.pass_rate = ratio(sums.passed, sums.decided);
  return sums;
}

// The lower end of the 99 % interval of a rate (Wilson): orders rates so that 1 of 1 does not stand above 40 of 100.
function lowerBound(hits, n) {
  if (!n) return null;
  const z = 2.576, p = hits / n, zz = (z * z) / n;
  return (p + zz / 2 - z * Math.sqrt((p * (1 - p)) / n + zz / (4 * n))) / (1 + zz);
}

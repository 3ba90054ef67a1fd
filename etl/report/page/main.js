// The state of the page stands in its address, so that a link leads to what one sees:
// #branch=main&period=7 filters, #check=KEY shows a check's own section, #section=flaky scrolls to one.

const PERIODS = [1, 7, 14, 30, 90];
const FILTERS = [
  { name: "account", label: "Account", all: "All accounts", nothing: "(no account yet)" },
  { name: "environment", label: "Environment", all: "All environments", nothing: "(no environment)" },
  { name: "branch", label: "Branch", all: "All branches", nothing: "(no branch)" },
  { name: "type", label: "Check type", all: "All types", nothing: "(no type)" },
];

function parse(hash) {
  const state = {};
  for (const part of hash.replace(/^#/, "").split("&")) {
    const [name, ...rest] = part.split("=");
    if (!name || !rest.length) continue;
    try {
      state[name] = decodeURIComponent(rest.join("="));
    } catch {
      state[name] = rest.join("=");
    }
  }
  return state;
}

const write = (state) => "#" + Object.entries(state).filter(([, text]) => text !== undefined && text !== null)
  .map(([name, text]) => `${name}=${encodeURIComponent(text)}`).join("&");

class Page {
  constructor(warehouse) {
    this.warehouse = warehouse;
    this.options = this._options();
    this.state = {};
    this.shownSection = null;
  }

  // Of each filter: [{ text: in the address, number: in the data, label }].
  _options() {
    const { warehouse } = this;
    const weights = { environment: new Map(), branch: new Map() };
    for (const [filter, column] of [["environment", "environment"], ["branch", "branch_name"]]) {
      for (const table of [warehouse.daily, warehouse.sessions]) {
        const numbers = table[column] || [];
        const counts = table.executions || table.test_sessions || [];
        numbers.forEach((one, i) => weights[filter].set(one, (weights[filter].get(one) || 0) + counts[i]));
      }
    }
    const found = {
      account: warehouse.freshness.map((row) => row.account_id),
      environment: [...weights.environment.keys()].sort((a, b) => weights.environment.get(b) - weights.environment.get(a)),
      branch: [...weights.branch.keys()].sort((a, b) => weights.branch.get(b) - weights.branch.get(a)),
      type: [...new Set(warehouse.checks.map((row) => row.check_type))].sort(),
    };
    const label = (filter, one) => (filter.name === "account" ? warehouse.accountNames.get(one) : warehouse.texts[one]) ?? filter.nothing;
    return Object.fromEntries(FILTERS.map((filter) => [filter.name, found[filter.name].map((one) =>
      ({ number: one, text: warehouse.texts[one] ?? "(none)", label: label(filter, one) || "(empty)" }))]));
  }

  periods() {
    const { days } = this.warehouse;
    return [...PERIODS.filter((one) => one < days), days];
  }

  // The numbers behind the texts of the address. What does not exist any more filters nothing.
  get filters() {
    const filters = {};
    for (const { name } of FILTERS) {
      const option = this.options[name].find(({ text }) => text === this.state[name]);
      filters[name] = option ? option.number : null;
    }
    const period = Number(this.state.period);
    filters.days = this.periods().includes(period) ? period : this.warehouse.days;
    return filters;
  }

  link(check) {
    const key = this.warehouse.texts[check.check_key];
    const isAlone = this.warehouse.checks.filter((one) => one.check_key === check.check_key).length === 1;
    const account = isAlone ? this.state.account : this.warehouse.texts[check.account_id] ?? "(none)";
    return write({ ...this.state, account, section: undefined, check: key });
  }

  get back() {
    return write({ ...this.state, check: undefined, section: undefined }) || "#";
  }

  _findCheck() {
    const { check: key, account } = this.state;
    if (key === undefined) return undefined;
    const found = this.warehouse.checks.filter((one) => this.warehouse.texts[one.check_key] === key);
    return found.find((one) => (this.warehouse.texts[one.account_id] ?? "(none)") === account) || found[0] || null;
  }

  // Draws everything anew. `focus`: where a link led to, so that a keyboard goes on from there.
  render({ focus = false } = {}) {
    this.state = parse(location.hash);
    const { warehouse, filters } = this;
    const check = this._findCheck();
    const page = { warehouse, filters, selection: new Selection(warehouse, filters), state: this.state, back: this.back,
      link: (one) => this.link(one) };
    forgetCharts();
    document.title = check ? `${check.name} · Checkly test report` : "Checkly test report";
    this._drawScope(page);
    this._drawFilters(filters);
    this._drawContents(check);
    document.getElementById("main").replaceChildren(...this._content(page, check));
    drawCharts();
    announce(check ? "" : `${number(page.selection.total().executions)} executions`);
    this._scroll(check, focus);
    document.documentElement.dataset.drawn ??= String(Math.round(performance.now()));
    document.documentElement.dataset.ready = "true";
  }

  _content(page, check) {
    const { warehouse } = this;
    if (check) return [checkSection(page, check)];
    const unknown = check === null ? [h("p", { class: "notice", role: "alert" }, "This page has no check ", h("code", {}, foreign(this.state.check)),
      ": it did not run in the days that the page shows.")] : [];
    if (!warehouse.sessionsKnown) return [...unknown, nothingYet(page)];
    if (!warehouse.checks.length) return [...unknown, nothingHere(page), trust(page)];
    return [...unknown, ...SECTIONS.map(({ make }) => make(page))];
  }

  _drawScope({ selection }) {
    const { warehouse } = this;
    const span = selection.days === 1 ? isoDay(selection.since) : `${isoDay(selection.since)} to ${isoDay(warehouse.secondsOf(warehouse.days - 1))}`;
    const chosen = FILTERS.filter(({ name }) => this.filters[name] !== null)
      .map(({ name, label }) => [" · ", `${label} `, foreign(this.options[name].find(({ number }) => number === this.filters[name]).label)]);
    document.getElementById("scope").replaceChildren(h("span", {}, span, chosen), h("span", { class: "muted" },
      `All days and times are UTC. Written ${moment(warehouse.written_at)} by checkly-etl ${warehouse.version}.`, this._age()));
  }

  _age() {
    const old = Date.now() / 1000 - this.warehouse.written_at;
    return old > 2 * DAY ? h("b", { id: "age" }, ` That was ${plural(Math.floor(old / DAY), "day")} ago.`) : "";
  }

  _drawFilters(filters) {
    const form = document.getElementById("filters");
    if (!form.children.length) {
      form.append(...FILTERS.map((filter) => this._select(filter.name, filter.label,
        [["", filter.all], ...this.options[filter.name].map(({ text, label }) => [text, label])])),
        this._select("period", "Period", this.periods().map((days) => [String(days), days === 1 ? "Today" : `Last ${days} days`])),
        h("button", { type: "button", id: "reset", onclick: () => { location.hash = write({ check: this.state.check }); } }, "Reset"));
      form.addEventListener("submit", (event) => event.preventDefault());
    }
    for (const { name } of FILTERS) {
      const option = this.options[name].find(({ number }) => number === filters[name]);
      form.elements[`filter-${name}`].selectedIndex = option ? this.options[name].indexOf(option) + 1 : 0;
    }
    form.elements["filter-period"].value = String(filters.days);
    document.getElementById("reset").disabled = FILTERS.every(({ name }) => filters[name] === null) && filters.days === this.warehouse.days;
  }

  _select(name, label, options) {
    const id = `filter-${name}`;
    return h("label", { for: id }, h("span", {}, label), h("select", { id, name: id, disabled: options.length < 2 || (name !== "period" && options.length === 2), onchange: (event) => {
      const index = event.target.selectedIndex;
      const text = name === "period" ? (index === options.length - 1 ? undefined : options[index][0]) : index ? options[index][0] : undefined;
      location.hash = write({ ...this.state, section: undefined, [name]: text });
    } }, options.map(([text, shown]) => h("option", { value: text, dir: "auto" }, shown))));
  }

  _drawContents(check) {
    const nav = document.getElementById("contents");
    nav.replaceChildren(h("ul", {}, SECTIONS.map(({ id, label }) =>
      h("li", {}, h("a", { href: write({ ...this.state, check: undefined, section: id }), onclick: () => this._again(id) }, label)))));
    document.getElementById("filters").hidden = !this.warehouse.sessionsKnown;
    nav.hidden = !this.warehouse.sessionsKnown || !this.warehouse.checks.length;
  }

  // The address does not change when the same link is followed twice.
  _again(id) {
    if (this.state.section === id) document.getElementById(`${id}-title`)?.scrollIntoView();
  }

  _scroll(check, focus) {
    const target = check ? document.getElementById("check-title") : document.getElementById(`${this.state.section}-title`);
    const place = `${this.state.check ?? ""} ${this.state.section ?? ""}`;
    if (target && (focus || this.place === undefined) && place !== this.place) {
      target.focus({ preventScroll: true });
      if (check) window.scrollTo(0, 0);
      else target.scrollIntoView();
    } else if (focus && this.place !== undefined && this.place.trim() && !place.trim()) {
      document.getElementById("main").focus({ preventScroll: true });
      window.scrollTo(0, 0);
    }
    this.place = place;
  }
}

function nothingYet(page) {
  return section("empty", "Nothing is exported yet", "The warehouse has its tables, and no test session in them. What to do next:",
    h("ol", {}, [["checkly-etl doctor", "says whether settings, key and account work"], ["checkly-etl backfill --since 30d", "exports what Checkly still has"],
      ["checkly-etl sync", "exports what is new; run it from cron, or as checkly-etl daemon"], ["checkly-etl report", "writes this page again"]]
      .map(([command, what]) => h("li", {}, h("code", {}, command), ` ${what}.`))),
    page.warehouse.freshness.length ? trust(page) : null);
}

function nothingHere(page) {
  const newest = Math.max(...page.warehouse.freshness.map((row) => row.newest_started_at ?? 0));
  return section("empty", "Nothing ran in these days", null, h("p", {}, `The newest test session started ${moment(newest || null)}. `,
    "For older days: ", h("code", {}, `checkly-etl report --since ${isoDay((newest || page.warehouse.written_at) - 29 * DAY)}`)));
}

async function start() {
  if (typeof DecompressionStream === "undefined") {
    document.getElementById("main").append(h("p", { class: "notice", role: "alert" },
      "This browser is too old to unpack the report. Any Chrome, Edge, Firefox or Safari since 2023 can."));
    return;
  }
  const page = new Page(new Warehouse(await unpack()));
  page.render();
  window.addEventListener("hashchange", () => page.render({ focus: true }));
  // Charts are drawn, not styled: another width or colour scheme, or paper, needs them drawn again.
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) requestAnimationFrame(drawCharts);
    width = window.innerWidth;
  });
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    window.matchMedia(query).addEventListener("change", drawCharts);
  }
  window.addEventListener("beforeprint", drawCharts);
  window.addEventListener("afterprint", drawCharts);
}

start();

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

// How null is written in an address, and a text that looks like it.
const token = (text) => (text === null || text === undefined ? "(none)" : /^\(+none\)+$/.test(text) ? `(${text})` : text);

class Page {
  constructor(warehouse) {
    this.warehouse = warehouse;
    this.options = this._options();
    this.checksByKey = new Map();
    for (const check of warehouse.checks) {
      const key = warehouse.texts[check.check_key];
      this.checksByKey.set(key, [...(this.checksByKey.get(key) || []), check]);
    }
    this.state = {};
    this.shown = null; // the check of the last rendering
    this.moved = "link"; // what changed the address: "link", "filter", or null: the browser's own buttons
    this.places = new Map(); // where the reader was, by address, for the way back
  }

  // Of each filter: [{ number: of the text, text: in the address, label }].
  _options() {
    const { warehouse } = this;
    const weights = { environment: new Map(), branch: new Map() };
    for (const [filter, column] of [["environment", "environment"], ["branch", "branch_name"]]) {
      for (const table of [warehouse.daily, warehouse.sessions]) {
        const counts = table.executions || table.test_sessions || [];
        (table[column] || []).forEach((one, i) => weights[filter].set(one, (weights[filter].get(one) || 0) + counts[i]));
      }
    }
    const heaviest = (found) => [...found.keys()].sort((a, b) => found.get(b) - found.get(a));
    const numbers = {
      account: warehouse.freshness.map((row) => row.account_id),
      environment: heaviest(weights.environment),
      branch: heaviest(weights.branch),
      type: [...new Set(warehouse.checks.map((row) => row.check_type))].sort((a, b) => a - b),
    };
    const named = (filter, one) => (filter.name === "account" ? warehouse.accountNames.get(one) : warehouse.texts[one]) ?? filter.nothing;
    return Object.fromEntries(FILTERS.map((filter) => [filter.name, numbers[filter.name].map((one) =>
      ({ number: one, text: token(warehouse.texts[one]), label: named(filter, one) || "(empty)" }))]));
  }

  get periods() {
    const { days } = this.warehouse;
    return [...PERIODS.filter((one) => one < days), days];
  }

  // The numbers behind the texts of the address. What the page does not know filters nothing.
  get filters() {
    const filters = Object.fromEntries(FILTERS.map(({ name }) =>
      [name, this.options[name].find(({ text }) => text === this.state[name])?.number ?? null]));
    const period = Number(this.state.period);
    return { ...filters, days: this.periods.includes(period) ? period : this.warehouse.days };
  }

  link(check) {
    const key = this.warehouse.texts[check.check_key];
    // Two accounts may have the same key: `of` says whose.
    const of = this.checksByKey.get(key).length > 1 ? token(this.warehouse.texts[check.account_id]) : undefined;
    return write({ ...this.state, section: undefined, check: key, of });
  }

  // The address without the check's own section, at one of the others.
  _overview(section) {
    return write({ ...this.state, check: undefined, of: undefined, section });
  }

  // The check that the address asks for; undefined: none; null: one that the page does not have.
  _findCheck() {
    const { check: key, of } = this.state;
    if (key === undefined) return undefined;
    const found = this.checksByKey.get(key) || [];
    return found.find((one) => token(this.warehouse.texts[one.account_id]) === of) || found[0] || null;
  }

  go(state) {
    this.moved = "filter";
    if (write(state) === (location.hash || "#")) this.moved = null;
    else location.hash = write(state);
  }

  // Draws everything anew.
  render() {
    this.state = parse(location.hash);
    const { warehouse, filters } = this;
    const check = this._findCheck();
    if (check !== this.shown) for (const id of tableStates.keys()) if (id.startsWith("check-")) tableStates.delete(id);
    const page = { warehouse, filters, selection: new Selection(warehouse, filters), back: this._overview(),
      link: (one) => this.link(one) };
    forgetCharts();
    document.title = check ? `${check.name} · Checkly test report` : "Checkly test report";
    this._drawScope(page);
    this._drawFilters(filters);
    this._drawContents();
    document.getElementById("main").replaceChildren(...this._content(page, check));
    drawCharts();
    announce(check ? "" : `${plural(page.selection.total().executions, "execution")} shown`);
    this._place(check);
    this.shown = check;
    document.documentElement.dataset.drawn ??= String(Math.round(performance.now()));
    document.documentElement.dataset.ready = "true";
  }

  _content(page, check) {
    const { warehouse } = this;
    if (check) return [checkSection(page, check)];
    const unknown = check === null ? [h("p", { class: "notice", role: "alert" }, "This page has no check ",
      h("code", {}, foreign(this.state.check)), ": it did not run in the days that the page shows.")] : [];
    if (!warehouse.sessionsKnown) return [...unknown, nothingYet(page)];
    if (!warehouse.hasData) return [...unknown, nothingHere(page), trust(page)];
    return [...unknown, ...SECTIONS.map(({ make }) => make(page))];
  }

  _drawScope({ selection, filters }) {
    const { warehouse } = this;
    const span = selection.days === 1 ? isoDay(selection.since) : `${isoDay(selection.since)} to ${isoDay(selection.until - DAY)}`;
    const chosen = FILTERS.filter(({ name }) => filters[name] !== null)
      .map(({ name, label }) => [" · ", `${label}: `, foreign(this.options[name].find(({ number }) => number === filters[name]).label)]);
    const old = Math.floor((Date.now() / 1000 - warehouse.written_at) / DAY);
    document.getElementById("scope").replaceChildren(h("span", {}, span, chosen), h("span", { class: "muted" },
      `All days and times are UTC. Written ${moment(warehouse.written_at)}.`,
      old >= 2 ? h("b", { id: "age" }, ` That was ${number(old)} days ago.`) : ""));
    document.getElementById("footer").replaceChildren(
      h("p", {}, "An ", h("b", {}, "execution"), " is a check that ran in a test session, its retries folded into one. It is ",
        h("b", {}, "decided"), " when its last try passed or failed. An execution that passed on a retry counts as passed."),
      h("p", {}, `Made by checkly-etl ${warehouse.version}, from its warehouse. Nothing on this page comes from or goes to a network, but for the links to Checkly.`));
  }

  _drawFilters(filters) {
    const form = document.getElementById("filters");
    if (!form.children.length) {
      form.append(...FILTERS.map((filter) => this._select(filter.name, filter.label,
        [["", filter.all], ...this.options[filter.name].map(({ text, label }) => [text, label])])),
        this._select("period", "Period", this.periods.map((days) => [String(days), days === 1 ? "Today" : `Last ${number(days)} days`])),
        h("button", { type: "button", id: "reset", onclick: () => this.go({ check: this.state.check, of: this.state.of }) }, "Reset"));
      form.addEventListener("submit", (event) => event.preventDefault());
    }
    for (const { name } of FILTERS) {
      form.elements[`filter-${name}`].selectedIndex = this.options[name].findIndex(({ number }) => number === filters[name]) + 1;
    }
    form.elements["filter-period"].value = String(filters.days);
    document.getElementById("reset").disabled = FILTERS.every(({ name }) => filters[name] === null) && filters.days === this.warehouse.days;
    form.hidden = !this.warehouse.sessionsKnown;
  }

  _select(name, label, options) {
    const id = `filter-${name}`;
    const isPeriod = name === "period";
    const change = ({ target: { selectedIndex: index } }) => {
      const isAll = isPeriod ? index === options.length - 1 : index === 0;
      this.go({ ...this.state, section: undefined, [name]: isAll ? undefined : options[index][0] });
    };
    return h("label", { for: id }, h("span", {}, label),
      h("select", { id, name: id, disabled: options.length < (isPeriod ? 2 : 3), onchange: change },
        options.map(([text, shown]) => h("option", { value: text, dir: "auto" }, clip(shown, 120)))));
  }

  _drawContents() {
    const nav = document.getElementById("contents");
    nav.replaceChildren(h("ul", {}, SECTIONS.map(({ id, label }) => h("li", {}, h("a", { href: this._overview(id) }, label)))));
    nav.hidden = !this.warehouse.sessionsKnown || !this.warehouse.hasData;
  }

  // Where the reader goes on. A link leads to a head; back and forward lead to where one was; a filter moves nothing.
  _place(check) {
    const before = this.shown;
    if (this.moved === "link") {
      const head = document.getElementById(check ? "check-title" : `${this.state.section}-title`);
      if (head) head.focus({ preventScroll: true });
      if (head && !check) head.scrollIntoView();
      else if (check || before) window.scrollTo(0, 0);
    } else if (this.moved === null) {
      window.scrollTo(0, this.places.get(location.hash) ?? 0);
      const link = before && [...document.querySelectorAll("main a")].find((one) => one.getAttribute("href") === this.link(before));
      (link || document.getElementById("main")).focus({ preventScroll: true });
    }
    this.moved = null;
  }

  listen() {
    history.scrollRestoration = "manual";
    window.addEventListener("hashchange", () => this.render());
    window.addEventListener("scroll", () => {
      // A browser that goes back scrolls before it tells: only what was drawn for this address counts.
      if (write(this.state) === write(parse(location.hash))) this.places.set(location.hash, window.scrollY);
    }, { passive: true });
    document.addEventListener("click", (event) => {
      const link = event.target.closest('a[href^="#"]');
      if (!link) return;
      if (link.getAttribute("href") === "#main") {
        event.preventDefault(); // the address is the page's state
        document.getElementById("main").focus();
        document.getElementById("main").scrollIntoView();
      } else if (link.getAttribute("href") === location.hash) {
        event.preventDefault(); // no change, so nobody else would scroll there again
        this.moved = "link";
        this._place(this.shown);
      } else {
        this.moved = link.classList.contains("back") ? null : "link";
      }
    });
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

function give(message) {
  document.getElementById("main").append(h("p", { class: "notice", role: "alert" }, message));
}

async function start() {
  if (typeof DecompressionStream === "undefined") {
    give("This browser is too old to unpack the report. Any Chrome, Edge, Firefox or Safari since 2023 can.");
    return;
  }
  const page = new Page(new Warehouse(await unpack()));
  page.listen();
  page.render();
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

start().catch((error) => {
  give("The report could not be drawn: a bug in checkly-etl, please report it. The browser's console has the details.");
  throw error;
});

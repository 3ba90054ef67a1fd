// Elements, tables and tiles. Text goes in as text: nothing here reads markup.

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Somebody else's text, in any script and direction, without disturbing what stands beside it.
const foreign = (text, attributes = {}) => h("bdi", attributes, text);

const muted = (...children) => h("p", { class: "muted" }, ...children);
const none = (text = NO_DATA) => h("span", { class: "none" }, text);
const badge = (kind, text, title) => h("span", { class: `badge ${kind}`, title }, text);

// Only to the web: a link that came from elsewhere could be a script.
function toCheckly(link, about) {
  if (!/^https?:\/\//i.test(link || "")) return none();
  return h("a", { href: link, target: "_blank", rel: "noopener noreferrer" }, "Checkly",
    h("span", { class: "unseen" }, ` ${about} (new tab)`));
}

// A number that a reader, and a test, can find again: data-name says which, data-value what it is.
const value = (name, raw, text, tag = "span", attributes = {}) =>
  h(tag, { "data-name": name, "data-value": raw === null ? "" : raw, ...attributes }, raw === null ? none() : text);

const tile = (name, label, raw, text, note) =>
  h("div", { class: "tile" }, h("dt", {}, label), value(name, raw, text, "dd"), note ? h("dd", { class: "note" }, note) : null);

const tiles = (...children) => h("dl", { class: "tiles" }, children);

// A rate with its sample: a bar, the percentage, and "3 of 24".
function rate(name, hits, n, { hasBar = true } = {}) {
  const found = ratio(hits, n);
  if (found === null) return value(name, null);
  const bar = h("span", { class: "bar", "aria-hidden": "true" }, h("span"));
  bar.firstChild.style.width = `${found * 100}%`;
  return h("span", { class: hasBar ? "rate" : "rate bare", "data-name": name, "data-value": found, "data-hits": hits, "data-n": n }, hasBar ? bar : null,
    h("b", {}, percent(found)), " ", h("span", { class: "muted" }, `${number(hits)} of ${number(n)}`));
}

const scrollable = (label, ...children) => h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label }, children);

// How each table is sorted and how much of it is shown outlives a filter.
const tableStates = new Map();

// columns: [{ name, label, of(row): what it is sorted by, cell(row): what is shown (a td, or what goes into one),
//             numeric, first: "asc" | "desc" }]. Nulls come last, whichever way. The order given is kept until a head
// is pressed.
function table({ id, caption, columns, rows, limit = 10, empty = "Nothing here.", keyOf, describe }) {
  if (!rows.length) return muted(empty);
  // A card a row is long: fewer of them at first.
  if (window.matchMedia("screen and (max-width: 640px)").matches) limit = Math.ceil(limit / 2);
  const state = tableStates.get(id) || { sort: null, descending: false, shown: limit };
  tableStates.set(id, state);
  const holder = h("div", { class: "table" });

  function sorted() {
    const column = columns.find(({ name }) => name === state.sort);
    if (!column) return rows;
    const direction = state.descending ? -1 : 1;
    return rows.map((row, i) => [column.of(row), i, row]).sort(([a, i], [b, j]) =>
      a === b ? i - j : a === null ? 1 : b === null ? -1
        : direction * (typeof a === "string" ? a.localeCompare(b, "en") : a - b) || i - j).map(([, , row]) => row);
  }

  function press(column) {
    if (state.sort === column.name) state.descending = !state.descending;
    else Object.assign(state, { sort: column.name, descending: (column.first || (column.numeric ? "desc" : "asc")) === "desc" });
    draw();
    holder.querySelector(`button[data-sort="${column.name}"]`).focus();
    announce(`Sorted by ${column.label}, ${state.descending ? "descending" : "ascending"}`);
  }

  function head(column) {
    const isSorted = state.sort === column.name;
    if (!column.of) return h("th", { scope: "col", role: "columnheader", class: "mute" }, column.label);
    return h("th", { scope: "col", role: "columnheader", class: column.numeric ? "n" : null,
      "aria-sort": isSorted ? (state.descending ? "descending" : "ascending") : null },
      h("button", { type: "button", "data-sort": column.name, onclick: () => press(column) }, column.label,
        h("span", { class: "arrow", "aria-hidden": "true" }, isSorted ? (state.descending ? "▼" : "▲") : "")));
  }

  function line(row) {
    return h("tr", { role: "row", "data-key": keyOf ? keyOf(row) : null }, columns.map((column, i) => {
      const shown = column.cell(row);
      const cell = shown instanceof HTMLElement && shown.tagName === "TD" ? shown
        : h(i === 0 ? "th" : "td", { scope: i === 0 ? "row" : null, class: column.numeric ? "n" : column.class }, shown);
      cell.setAttribute("role", i === 0 && cell.tagName === "TH" ? "rowheader" : "cell");
      cell.setAttribute("data-label", column.label);
      return cell;
    }));
  }

  function more() {
    const left = rows.length - Math.min(state.shown, rows.length);
    const buttons = [];
    if (left > 0) {
      const step = Math.min(left, Math.max(100, limit));
      buttons.push(h("button", { type: "button", class: "more", onclick: () => { state.shown += step; draw(); refocus(); } },
        step === left ? `Show all ${number(rows.length)}` : `Show ${number(step)} more`));
    }
    if (state.shown > limit && rows.length > limit) {
      buttons.push(h("button", { type: "button", class: "more", onclick: () => { state.shown = limit; draw(); refocus(); } },
        `Show ${number(limit)} only`));
    }
    return buttons.length ? h("p", { class: "controls" }, buttons,
      h("span", { class: "muted" }, ` ${number(Math.min(state.shown, rows.length))} of ${number(rows.length)}`)) : null;
  }

  function refocus() {
    const button = holder.querySelector("button.more");
    if (button) button.focus();
    announce(`${Math.min(state.shown, rows.length)} of ${rows.length} rows shown`);
  }

  function draw() {
    holder.replaceChildren(
      // The roles are those that the elements have: a phone's layout would take them away.
      scrollable(caption, h("table", { id, role: "table", class: columns.length > 3 ? "cards" : null, "data-rows": rows.length },
        h("caption", { class: "unseen" }, caption, describe ? ` ${describe}` : ""),
        h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map(head))),
        h("tbody", { role: "rowgroup" }, sorted().slice(0, state.shown).map(line)))),
      more() || "");
  }

  draw();
  return holder;
}

function announce(text) {
  document.getElementById("announcer").textContent = text;
}

// A section: what it answers as its head, how it counts below, then the answer.
function section(id, title, note, ...children) {
  return h("section", { id, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title`, tabindex: "-1" }, title), note ? muted(note) : null, ...children);
}

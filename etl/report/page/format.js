// Numbers, times and texts, written alike everywhere. null is "no data", never 0.

const NO_DATA = "no data";
const DAY = 86400;
const _number = new Intl.NumberFormat("en-US");
const _decimal = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1, minimumFractionDigits: 1 });

const number = (value) => (value === null ? NO_DATA : _number.format(value));

// A rate between 0 and 1. What is not all is never written as 100 %, what is not nothing never as 0 %.
function percent(rate) {
  if (rate === null) return NO_DATA;
  if (rate === 0 || rate === 1) return `${rate * 100}%`;
  if (rate < 0.001) return "<0.1%";
  if (rate > 0.999) return ">99.9%";
  return `${_decimal.format(rate * 100)}%`;
}

const ratio = (over, under) => (under > 0 ? over / under : null);

// Milliseconds, in the two units that matter.
function duration(ms) {
  if (ms === null) return NO_DATA;
  if (ms < 1000) return `${number(Math.round(ms))} ms`;
  if (ms < 59_950) return `${_decimal.format(ms / 1000)} s`;
  const two = (whole, unit, rest, lesser) => `${number(whole)} ${unit}${rest ? ` ${rest} ${lesser}` : ""}`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return two(Math.floor(seconds / 60), "min", seconds % 60, "s");
  const minutes = Math.round(seconds / 60);
  if (minutes < 24 * 60) return two(Math.floor(minutes / 60), "h", minutes % 60, "min");
  const hours = Math.round(minutes / 60);
  return two(Math.floor(hours / 24), "d", hours % 24, "h");
}

// Seconds since 1970 -> 2026-11-26 10:40 UTC
function moment(seconds) {
  return seconds === null ? NO_DATA : `${new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ")} UTC`;
}

// How long before the page was written, in units that do not flicker.
function age(seconds) {
  if (seconds < 60) return "under a minute";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return duration(Math.round(seconds / 60) * 60_000);
}

// The same for the axis of a chart.
const wholePercent = (rate) => `${Math.round(rate * 100)}%`;

const isoDay = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10);

// 26 Nov: for axes and the heads of columns, where the page says the year elsewhere.
const shortDay = (seconds) =>
  new Date(seconds * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });

const shortCommit = (commit) => (/^[0-9a-f]{12,}$/i.test(commit) ? commit.slice(0, 8) : commit);

const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

// The beginning of a text, in whole characters.
function clip(text, length) {
  const characters = Array.from(text);
  return characters.length <= length ? text : `${characters.slice(0, length).join("")}…`;
}

// Nearest rank, as in the views: of n values, ascending, the one at rank (p·n + 99) / 100 in whole numbers.
function percentile(values, p) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor((p * sorted.length + 99) / 100) - 1];
}

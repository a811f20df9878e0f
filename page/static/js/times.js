// Moments as the reader's language writes them.

import { format, language } from "./text.js";

/** Date and time of a Unix time. */
export function dateTime(unix) {
  const options = { dateStyle: "medium", timeStyle: "short" };
  return format("dateTime", () => new Intl.DateTimeFormat(language, options)).format(unix * 1000);
}

export function time(unix) {
  return format("time", () => new Intl.DateTimeFormat(language, { timeStyle: "medium" })).format(unix * 1000);
}

/** "3 minutes ago". */
export function ago(unix, now = Date.now() / 1000) {
  const relative = format("ago", () => new Intl.RelativeTimeFormat(language, { numeric: "auto" }));
  const past = Math.max(0, now - unix);
  if (past < 60) return relative.format(-Math.floor(past), "second");
  if (past < 3600) return relative.format(-Math.floor(past / 60), "minute");
  if (past < 86400) return relative.format(-Math.floor(past / 3600), "hour");
  return relative.format(-Math.floor(past / 86400), "day");
}

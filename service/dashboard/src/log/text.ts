// What a line of a log says and how it is shown: ANSI colours, levels, progress bars. Pure functions.

export interface Piece {
  text: string;
  /** Classes such as `ansi-31` or `ansi-bold`. */
  style: string;
}

const ESCAPE = /\u001b\[([0-9;]*)m/g;
// Everything else that a terminal would obey: cursor movement, titles, links, the clipboard.
const OTHER = /\u001b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|[PX^_][^\u001b]*\u001b\\|[@-Z\\-_])|[\u0000-\u0008\u000b-\u001a\u001c-\u001f\u007f]/g;

/** A line as pieces of one colour each; what is no colour is left out. */
export function pieces(line: string): Piece[] {
  const found: Piece[] = [];
  let style: string[] = [];
  let at = 0;
  const push = (text: string) => {
    const plain = text.replace(OTHER, "").replace(/\u001b/g, "");
    if (plain) found.push({ text: plain, style: style.map((code) => `ansi-${code}`).join(" ") });
  };
  for (const match of line.matchAll(ESCAPE)) {
    push(line.slice(at, match.index));
    at = match.index + match[0].length;
    style = restyle(style, match[1] ?? "");
  }
  push(line.slice(at));
  return found;
}

function restyle(style: string[], codes: string): string[] {
  let result = style;
  for (const code of codes === "" ? ["0"] : codes.split(";")) {
    const value = Number(code);
    if (value === 0) result = [];
    else if (value === 1) result = [...result.filter((one) => one !== "bold"), "bold"];
    else if ((value >= 30 && value <= 37) || (value >= 90 && value <= 97)) result = [...result.filter((one) => one === "bold"), String(value)];
    else if (value === 39) result = result.filter((one) => one === "bold");
  }
  return result;
}

/** What is left of a line in which a progress bar came back to the start: its last state. */
export function folded(line: string): string {
  const trimmed = line.endsWith("\r") ? line.slice(0, -1) : line;
  const at = trimmed.lastIndexOf("\r");
  return at < 0 ? trimmed : trimmed.slice(at + 1);
}

const ERROR = /(?:error|exception|traceback|fatal|critical|panic|segfault|out of memory)\b|\b(?:oom|failed)\b/i;
const WARNING = /\b(?:warn|warning|deprecated)\b/i;

/** How bad a line is, by its words. */
export function level(line: string): "error" | "warning" | "" {
  if (ERROR.test(line)) return "error";
  return WARNING.test(line) ? "warning" : "";
}

/** What a search means: a plain text, or with `regex` a regular expression. Null when that is none. */
export function matcher(query: string, regex: boolean): RegExp | null {
  try {
    return new RegExp(regex ? query : query.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "i");
  } catch {
    return null;
  }
}

// How numbers, times and sizes are written. Pure functions.
import { lang } from "../i18n";

/** `0.02255`, `6.8e-6`, `12,345`, `NaN`: four figures that matter. */
export function number(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return value.toLocaleString("en-US");
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("e+", "e");
  return Number(value.toPrecision(4)).toLocaleString("en-US", { maximumFractionDigits: 6 });
}

const UNITS: Record<string, [string, string, string, string]> = { en: ["d", "h", "m", "s"], zh: ["天", "时", "分", "秒"] };

/** `45s`, `3m 20s`, `2h 05m`, `4d 3h`. */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const [d, h, m, s] = UNITS[lang.value] ?? UNITS["en"]!;
  const all = Math.max(0, Math.round(seconds));
  if (all < 60) return `${all}${s}`;
  if (all < 3600) return `${Math.floor(all / 60)}${m} ${pad(all % 60)}${s}`;
  if (all < 86400) return `${Math.floor(all / 3600)}${h} ${pad(Math.floor(all / 60) % 60)}${m}`;
  return `${Math.floor(all / 86400)}${d} ${Math.floor(all / 3600) % 24}${h}`;
}

function pad(value: number): string {
  return String(value).padStart(2, "0");
}

/** `1.5 GiB`, `830 B`. */
export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  const names = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let size = value;
  let index = 0;
  while (size >= 1024 && index < names.length - 1) {
    size /= 1024;
    index += 1;
  }
  return `${size >= 100 || index === 0 ? Math.round(size) : size.toFixed(1)} ${names[index]}`;
}

/** Date and time in the reader's zone: `2026-11-28 18:20:07`. */
export function moment(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return "–";
  const at = new Date(seconds * 1000);
  return `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${clock(seconds)}`;
}

/** `18:20:07`. */
export function clock(seconds: number): string {
  const at = new Date(seconds * 1000);
  return `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
}

/** `sha256:0123456789ab`. */
export function shortDigest(digest: string | null | undefined): string {
  return digest ? digest.replace(/^(sha256:)?([0-9a-f]{12})[0-9a-f]*$/, "$1$2") : "–";
}

// English and Chinese. The control plane sends codes and numbers; sentences are made here.
import { signal } from "@preact/signals";
import { en } from "./en";
import { zh } from "./zh";
import { help } from "./zh-help";

export type Key = keyof typeof en;
export type Lang = "en" | "zh";
export const catalogues: Record<Lang, Record<Key, string>> = { en, zh };

function initial(): Lang {
  try {
    const kept = localStorage.getItem("navarch.lang");
    if (kept === "en" || kept === "zh") return kept;
    return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
  } catch {
    return "en";
  }
}

export const lang = signal<Lang>(initial());

export function setLang(value: Lang): void {
  lang.value = value;
  try {
    localStorage.setItem("navarch.lang", value);
  } catch {
    // a browser without storage: the choice lasts as long as the page
  }
}

/** The sentence of a key, with `{name}` replaced. */
export function t(key: Key, values: Record<string, string | number> = {}): string {
  return catalogues[lang.value][key].replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

/** The sentence of a key that is put together, or what else is known. */
export function tOr(key: string, fallback: string, values: Record<string, string | number> = {}): string {
  return key in en ? t(key as Key, values) : fallback;
}

/** What the API says of a field or a unit, in English, in the reader's language. */
export function tHelp(text: string): string {
  return lang.value === "zh" ? (help[text] ?? text) : text;
}

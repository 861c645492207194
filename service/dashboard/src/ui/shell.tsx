// The frame around every page: navigation, keyboard, theme, language, and what went wrong with the connection.
import { signal, useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useLocation } from "preact-iso";
import { useEffect } from "preact/hooks";
import { lostSince, outdated } from "../api/client";
import { signOut, who } from "../api/session";
import { type Key, lang, setLang, t } from "../i18n";
import { Icon } from "./icons";
import { Confirmation, now, Toasts } from "./parts";

interface Place {
  path: string;
  name: string;
  label: Key;
  /** Pressed after `g`. */
  letter: string;
}
export const PLACES: readonly Place[] = [
  { path: "/", name: "overview", label: "nav.overview", letter: "o" },
  { path: "/jobs", name: "jobs", label: "nav.jobs", letter: "j" },
  { path: "/compare", name: "compare", label: "nav.compare", letter: "c" },
  { path: "/submit", name: "submit", label: "nav.submit", letter: "n" },
  { path: "/workspaces", name: "workspaces", label: "nav.workspaces", letter: "w" },
  { path: "/images", name: "images", label: "nav.images", letter: "i" },
  { path: "/artifacts", name: "artifacts", label: "nav.artifacts", letter: "a" },
  { path: "/playground", name: "playground", label: "nav.playground", letter: "p" },
  { path: "/hosts", name: "hosts", label: "nav.hosts", letter: "h" },
  { path: "/people", name: "people", label: "nav.people", letter: "u" },
  { path: "/events", name: "events", label: "nav.events", letter: "e" },
];

type Theme = "light" | "dark" | "auto";
const theme = signal<Theme>(readTheme());

function readTheme(): Theme {
  try {
    const kept = localStorage.getItem("navarch.theme");
    return kept === "light" || kept === "dark" ? kept : "auto";
  } catch {
    return "auto";
  }
}

function useTheme(): void {
  useEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const apply = () => {
      const value = theme.value === "auto" ? (dark.matches ? "dark" : "light") : theme.value;
      document.documentElement.dataset["theme"] = value;
      document.dispatchEvent(new CustomEvent("theme"));
    };
    apply();
    dark.addEventListener("change", apply);
    return () => dark.removeEventListener("change", apply);
  }, [theme.value]);
}

function setTheme(value: Theme): void {
  theme.value = value;
  try {
    localStorage.setItem("navarch.theme", value);
  } catch {
    // as with the language
  }
}

/** `/` search, `g` and a letter to go somewhere, `?` help. */
function useKeyboard(help: () => void): void {
  const { route } = useLocation();
  useEffect(() => {
    let going = 0;
    const pressed = (event: KeyboardEvent) => {
      const at = event.target as HTMLElement;
      if (event.metaKey || event.ctrlKey || event.altKey || at.closest("input, textarea, select, [contenteditable], dialog")) return;
      if (Date.now() - going < 1200) {
        going = 0;
        const place = PLACES.find((one) => one.letter === event.key);
        if (place) {
          event.preventDefault();
          route(place.path);
        }
      } else if (event.key === "g") going = Date.now();
      else if (event.key === "?") help();
      else if (event.key === "/") {
        const search = document.querySelector<HTMLInputElement>("main input[type=search]");
        event.preventDefault();
        if (search) search.focus();
        else route("/jobs?focus=search");
      }
    };
    document.addEventListener("keydown", pressed);
    return () => document.removeEventListener("keydown", pressed);
  }, [route]);
}

export function Shell({ children }: { children: ComponentChildren }) {
  const { path } = useLocation();
  const open = useSignal(false);
  const helping = useSignal(false);
  useTheme();
  useKeyboard(() => (helping.value = true));
  useEffect(() => {
    open.value = false;
  }, [path]);
  useEffect(() => {
    document.documentElement.lang = lang.value === "zh" ? "zh-CN" : "en";
  }, [lang.value]);
  return (
    <div class="shell">
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.getElementById("main")?.focus(); }}>
        {t("nav.skip")}
      </a>
      <header class="topbar">
        <button type="button" class="button quiet" aria-label={t("nav.menu")} aria-expanded={open.value} onClick={() => (open.value = !open.value)}>
          <Icon name="menu" />
        </button>
        <a class="brand" href="/">
          <img src="/icon.svg" alt="" />
          Navarch
        </a>
      </header>
      {open.value ? <button type="button" class="scrim" aria-label={t("common.close")} onClick={() => (open.value = false)} /> : null}
      <aside class={open.value ? "sidebar open" : "sidebar"} aria-label="Navarch">
        <a class="brand" href="/">
          <img src="/icon.svg" alt="" />
          Navarch
        </a>
        <nav class="nav" aria-label={t("nav.label")}>
          {PLACES.map((place) => (
            <a key={place.path} href={place.path} aria-current={current(path, place.path) ? "page" : undefined}>
              <Icon name={place.name} />
              {t(place.label)}
            </a>
          ))}
        </nav>
        <footer>
          {who.value ? (
            <div class="row">
              <span class="wrap" title={t(`role.${who.value.role === "admin" ? "admin" : "member"}`)}>{who.value.name}</span>
              {who.value.session ? (
                <button type="button" class="button quiet small" onClick={() => void signOut()}>
                  {t("session.out")}
                </button>
              ) : null}
            </div>
          ) : null}
          <div class="row">
            <label class="visually-hidden" for="theme">{t("nav.theme")}</label>
            <select id="theme" value={theme.value} onChange={(event) => setTheme(event.currentTarget.value as Theme)}>
              <option value="auto">{t("theme.auto")}</option>
              <option value="light">{t("theme.light")}</option>
              <option value="dark">{t("theme.dark")}</option>
            </select>
          </div>
          <div class="row">
            <button type="button" class="button quiet small" onClick={() => setLang(lang.value === "en" ? "zh" : "en")}>
              {lang.value === "en" ? "中文" : "English"}
            </button>
            <button type="button" class="button quiet small" onClick={() => (helping.value = true)}>
              <kbd>?</kbd> {t("nav.help")}
            </button>
          </div>
        </footer>
      </aside>
      <main id="main" tabIndex={-1}>
        <Connection />
        {children}
      </main>
      <Toasts />
      <Confirmation />
      {helping.value ? <Help close={() => (helping.value = false)} /> : null}
    </div>
  );
}

function current(path: string, place: string): boolean {
  return place === "/" ? path === "/" : path === place || path.startsWith(`${place}/`);
}

function Connection() {
  if (outdated.value)
    return (
      <div class="banner" role="alert">
        <span class="grow">{t("connection.outdated")}</span>
        <button type="button" class="button small" onClick={() => location.reload()}>
          {t("connection.reload")}
        </button>
      </div>
    );
  if (lostSince.value !== null && now.value * 1000 - lostSince.value > 1500)
    return (
      <div class="banner bad" role="alert">
        {t("connection.lost", { seconds: Math.round(now.value - lostSince.value / 1000) })}
      </div>
    );
  return null;
}

function Help({ close }: { close: () => void }) {
  return (
    <dialog ref={(box) => void (box && !box.open && box.showModal())} onClose={close} aria-labelledby="help-title">
      <h2 id="help-title">{t("help.title")}</h2>
      <dl class="facts">
        <dt><kbd>/</kbd></dt>
        <dd>{t("help.search")}</dd>
        {PLACES.map((place) => (
          <>
            <dt key={place.letter}><kbd>g</kbd> <kbd>{place.letter}</kbd></dt>
            <dd>{t(place.label)}</dd>
          </>
        ))}
        <dt><kbd>n</kbd> <kbd>N</kbd></dt>
        <dd>{t("help.matches")}</dd>
        <dt><kbd>?</kbd></dt>
        <dd>{t("help.this")}</dd>
      </dl>
      <form method="dialog" class="row end">
        <button class="button primary">{t("common.close")}</button>
      </form>
    </dialog>
  );
}

// Small pieces that every page uses.
import { signal, useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import type { ApiError } from "../api/client";
import { t, tOr } from "../i18n";
import { duration, moment } from "../lib/format";

/** Seconds since the epoch, ticking; what shows an age reads it. */
export const now = signal(Date.now() / 1000);
setInterval(() => {
  if (typeof document === "undefined" || !document.hidden) now.value = Date.now() / 1000;
}, 1000);

export function Badge({ state }: { state: string }) {
  return <span class={`badge ${state}`}>{tOr(`state.${state}`, state)}</span>;
}

/** How long ago, with the moment itself as the title. */
export function Ago({ at }: { at: number | null | undefined }) {
  if (at === null || at === undefined) return <>–</>;
  return (
    <time dateTime={new Date(at * 1000).toISOString()} title={moment(at)} class="nowrap">
      {duration(now.value - at)}
    </time>
  );
}

/** From `from` to `to`, or until now. */
export function Span({ from, to }: { from: number | null | undefined; to: number | null | undefined }) {
  if (from === null || from === undefined) return <>–</>;
  return <span class="nowrap">{duration((to ?? now.value) - from)}</span>;
}

export function Empty({ title, children, command }: { title: string; children?: ComponentChildren; command?: string }) {
  return (
    <div class="empty">
      <strong>{title}</strong>
      {children}
      {command ? (
        <div>
          <code>{command}</code>
        </div>
      ) : null}
    </div>
  );
}

export function Loading() {
  return (
    <div class="empty" role="status">
      {t("common.loading")}
    </div>
  );
}

export function Failure({ error }: { error: ApiError }) {
  return (
    <div class="banner bad" role="alert">
      <span class="grow">
        {error.message} {error.hint ?? ""}
      </span>
    </div>
  );
}

export function Meter({ share, label }: { share: number; label: string }) {
  const percent = Math.round(Math.min(1, Math.max(0, share)) * 100);
  const bar = useRef<HTMLElement>(null);
  useEffect(() => {
    if (bar.current) bar.current.style.width = `${percent}%`;
  }, [percent]);
  return (
    <div class="meter" role="progressbar" aria-label={label} aria-valuenow={percent} aria-valuemin={0} aria-valuemax={100}>
      <i ref={bar} />
    </div>
  );
}

export function Copy({ text, label }: { text: string; label?: string }) {
  const done = useSignal(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      copyByHand(text); // a page over plain http may not use the clipboard API
    }
    done.value = true;
    setTimeout(() => (done.value = false), 1600);
  };
  return (
    <button type="button" class="button small" onClick={() => void copy()}>
      {done.value ? t("common.copied") : (label ?? t("common.copy"))}
    </button>
  );
}

function copyByHand(text: string): void {
  const area = document.createElement("textarea");
  area.value = text;
  area.setAttribute("aria-hidden", "true");
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function Code({ text, wrapped, label }: { text: string; wrapped?: boolean; label: string }) {
  return (
    <div class="copy-box">
      <pre class={wrapped ? "code wrapped" : "code"} tabIndex={0} aria-label={label}>
        {text}
      </pre>
      <Copy text={text} />
    </div>
  );
}

interface Toast {
  id: number;
  kind: "good" | "bad";
  text: string;
}
const toasts = signal<Toast[]>([]);
let next = 1;

/** Says something at the edge of the page; errors stay longer. */
export function say(text: string, kind: "good" | "bad" = "good"): void {
  const id = next++;
  toasts.value = [...toasts.value.slice(-3), { id, kind, text }];
  setTimeout(() => (toasts.value = toasts.value.filter((toast) => toast.id !== id)), kind === "bad" ? 12000 : 4500);
}

export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite">
      {toasts.value.map((toast) => (
        <div key={toast.id} class={`toast ${toast.kind}`}>
          <span class="grow">{toast.text}</span>
          <button
            type="button"
            class="button quiet small"
            aria-label={t("common.close")}
            onClick={() => (toasts.value = toasts.value.filter((other) => other.id !== toast.id))}
          >
            ×
          </button>
        </div>
      ))}
    </div>
  );
}

/** Runs something that the control plane may refuse, and says how it went. */
export async function attempt<T>(work: () => Promise<T>, done?: string): Promise<T | undefined> {
  try {
    const result = await work();
    if (done) say(done);
    return result;
  } catch (failure) {
    const error = failure as Partial<ApiError> & Error;
    say(error.hint ? `${error.message} ${error.hint}` : error.message || t("common.lost"), "bad");
    return undefined;
  }
}

interface Asked {
  title: string;
  text: string;
  yes: string;
  danger: boolean;
  answer: (sure: boolean) => void;
}
const asked = signal<Asked | null>(null);

/** Asks before something that can't be undone. */
export function sure(title: string, text: string, yes: string, danger = true): Promise<boolean> {
  return new Promise((answer) => (asked.value = { title, text, yes, danger, answer }));
}

export function Confirmation() {
  const box = useRef<HTMLDialogElement>(null);
  const question = asked.value;
  useEffect(() => {
    if (question && box.current && !box.current.open) box.current.showModal();
  }, [question]);
  if (!question) return null;
  const close = (answer: boolean) => {
    asked.value = null;
    question.answer(answer);
  };
  return (
    <dialog ref={box} onCancel={() => close(false)} aria-labelledby="sure-title">
      <h2 id="sure-title">{question.title}</h2>
      <p>{question.text}</p>
      <div class="row end">
        <button type="button" class="button" onClick={() => close(false)}>
          {t("common.cancel")}
        </button>
        <button type="button" class={`button ${question.danger ? "danger" : "primary"}`} onClick={() => close(true)}>
          {question.yes}
        </button>
      </div>
    </dialog>
  );
}

export function Field(props: {
  id: string;
  label: string;
  help?: string | undefined;
  error?: string | undefined;
  wide?: boolean;
  children: ComponentChildren;
}) {
  return (
    <div class={props.wide ? "field wide" : "field"}>
      <label for={props.id}>{props.label}</label>
      {props.children}
      {props.error ? (
        <span class="error" role="alert">
          {props.error}
        </span>
      ) : null}
      {props.help ? <span class="help">{props.help}</span> : null}
    </div>
  );
}

// Data on a page: fetched when it is first shown, again when the control plane says that it changed, never twice at once.
import { type Signal, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ApiError } from "./client";
import { watch } from "./live";

export interface Loaded<T> {
  /** The newest answer; undefined until the first one. Kept while it is fetched again. */
  data: Signal<T | undefined>;
  error: Signal<ApiError | null>;
  reload: () => void;
}

const GAP_MS = 400;

/** Fetches with `load` whenever `deps` change or one of `topics` does. Changes that pour in share fetches. */
export function useData<T>(
  load: (signal: AbortSignal) => Promise<T>,
  deps: readonly unknown[],
  topics: readonly string[] = [],
  gapMs = GAP_MS,
): Loaded<T> {
  const data = useSignal<T | undefined>(undefined);
  const error = useSignal<ApiError | null>(null);
  const reload = useRef<() => void>(() => undefined);
  useEffect(() => {
    const ending = new AbortController();
    let busy = false;
    let again = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let last = 0;
    const run = async (): Promise<void> => {
      timer = undefined;
      busy = true;
      last = Date.now();
      try {
        const got = await load(ending.signal);
        if (ending.signal.aborted) return;
        data.value = got;
        error.value = null;
      } catch (failure) {
        if (ending.signal.aborted) return;
        if (failure instanceof ApiError) error.value = failure;
        else if (!(failure instanceof TypeError)) throw failure; // a TypeError of fetch: nobody answers; the banner says so
        else timer = setTimeout(() => void run(), 1500);
      } finally {
        busy = false;
      }
      if (again) {
        again = false;
        soon();
      }
    };
    const soon = (): void => {
      if (busy) again = true;
      else if (timer === undefined) timer = setTimeout(() => void run(), Math.max(0, last + gapMs - Date.now()));
    };
    reload.current = soon;
    void run();
    const unwatch = topics.length ? watch(topics, () => (document.hidden ? undefined : soon())) : () => undefined;
    const shown = (): void => {
      if (!document.hidden) soon();
    };
    document.addEventListener("visibilitychange", shown);
    return () => {
      ending.abort();
      clearTimeout(timer);
      unwatch();
      document.removeEventListener("visibilitychange", shown);
    };
  }, deps);
  return { data, error, reload: () => reload.current() };
}

// A page's title, and the focus that follows it, so that a screen reader hears where one has come.
import { useEffect } from "preact/hooks";

let first = true;

export function useTitle(title: string): void {
  useEffect(() => {
    document.title = title ? `${title} · Navarch` : "Navarch";
    if (!first) document.querySelector<HTMLElement>("main h1")?.focus({ preventScroll: true });
    first = false;
  }, [title]);
}

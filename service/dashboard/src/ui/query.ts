// The state of a page as its URL: each view can be shared.
import { useLocation } from "preact-iso";

export interface Query {
  get: (name: string) => string;
  all: (name: string) => string[];
  /** Changes some parameters; an empty value takes one away. */
  set: (changes: Record<string, string | readonly string[] | null>, replace?: boolean) => void;
}

export function useQuery(): Query {
  const { url, route } = useLocation();
  const at = new URL(url, location.origin);
  return {
    get: (name) => at.searchParams.get(name) ?? "",
    all: (name) => at.searchParams.getAll(name),
    set: (changes, replace = true) => {
      const to = new URL(location.href);
      for (const [name, value] of Object.entries(changes)) {
        to.searchParams.delete(name);
        for (const item of typeof value === "string" ? [value] : (value ?? [])) if (item !== "") to.searchParams.append(name, item);
      }
      route(`${to.pathname}${to.search}`, replace);
    },
  };
}

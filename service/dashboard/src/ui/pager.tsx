// Leads through a list that comes in pages: the next one, and back to the first.
import { t } from "../i18n";
import type { Query } from "./query";

/** `next`: where the following page begins, if there is one. */
export function Pager({ query, next }: { query: Query; next: string | null | undefined }) {
  return (
    <div class="row end">
      {query.get("after") ? (
        <button type="button" class="button" onClick={() => query.set({ after: null }, false)}>
          {t("common.firstPage")}
        </button>
      ) : null}
      {next ? (
        <button type="button" class="button" onClick={() => query.set({ after: next }, false)}>
          {t("common.nextPage")}
        </button>
      ) : null}
    </div>
  );
}

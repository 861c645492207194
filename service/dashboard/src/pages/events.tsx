// Everything that happened, and who did it, the newest first.
import { api, need } from "../api/client";
import { useData } from "../api/use";
import { t } from "../i18n";
import { moment } from "../lib/format";
import { eventSentence } from "../lib/sentences";
import { Empty, Failure, Loading } from "../ui/parts";
import { Pager } from "../ui/pager";
import { useQuery } from "../ui/query";
import { useTitle } from "../ui/title";

export function Events() {
  useTitle(t("nav.events"));
  const query = useQuery();
  const cursor = query.get("after");
  const page = useData(
    (signal) => need(api.GET("/api/v1/events", { params: { query: { limit: 100, cursor: cursor || undefined } }, signal })),
    [cursor],
    cursor ? [] : ["events"],
    2000,
  );
  return (
    <>
      <header class="page-head">
        <h1 tabIndex={-1} class="grow">
          {t("nav.events")}
        </h1>
      </header>
      {page.error.value ? <Failure error={page.error.value} /> : null}
      {page.data.value === undefined ? (
        <Loading />
      ) : page.data.value.items.length === 0 ? (
        <Empty title={t("events.none")} />
      ) : (
        <div class="table-box">
          <table>
            <thead>
              <tr>
                <th class="tight">{t("events.time")}</th>
                <th class="tight optional">{t("events.actor")}</th>
                <th class="tight">{t("events.subject")}</th>
                <th>{t("events.what")}</th>
              </tr>
            </thead>
            <tbody>
              {page.data.value.items.map((event) => (
                <tr key={event.id}>
                  <td class="mono tight">{moment(event.time)}</td>
                  <td class="optional">{event.actor}</td>
                  <td>{event.job_id ? <a href={`/jobs/${event.job_id}`}>{event.job_name ?? event.job_id}</a> : <code>{event.kind}</code>}</td>
                  <td class="wrap">{eventSentence(event)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <Pager query={query} next={page.data.value?.next_cursor} />
    </>
  );
}

// Several runs beside each other: their curves in one chart, what differs in their configurations, their last values.
import { useSignal } from "@preact/signals";
import { api, type Job, need } from "../api/client";
import { useData } from "../api/use";
import { Charts, ChartTools } from "../charts/panel";
import { t } from "../i18n";
import { number } from "../lib/format";
import { at as valueAt, differences } from "../lib/spec";
import { Badge, Empty, Loading } from "../ui/parts";
import { useQuery } from "../ui/query";
import { useTitle } from "../ui/title";

const MOST = 50;

export function Compare() {
  useTitle(t("nav.compare"));
  const query = useQuery();
  const ids = query.all("run").slice(0, MOST);
  const group = query.get("group");
  const mean = query.get("mean") === "1";
  const adding = useSignal("");
  const runs = useData(
    (signal) => Promise.all(ids.map((ref) => need(api.GET("/api/v1/jobs/{ref}", { params: { path: { ref } }, signal })))),
    [ids.join()],
  );
  const found = useData(
    (signal) => need(api.GET("/api/v1/jobs", { params: { query: { limit: 20, q: adding.value || undefined, type: ["pt", "sft", "rm", "dpo", "ppo", "grpo"] } }, signal })),
    [adding.value],
  );
  const jobs: Job[] = ids.length ? (runs.data.value ?? []) : [];
  const paths = differences(jobs.map((job) => job.spec));
  const grouped = jobs.map((job) => ({
    id: job.id,
    label: unique(jobs, job),
    live: !job.finished_at,
    group: group ? String(valueAt(job.spec, group) ?? "–") : undefined,
  }));
  return (
    <>
      <header class="page-head">
        <h1 tabIndex={-1} class="grow">
          {t("nav.compare")}
        </h1>
      </header>
      <section class="card">
        <div class="row">
          {jobs.map((job) => (
            <button key={job.id} type="button" class="chip" aria-label={t("compare.remove", { name: job.name })} onClick={() => query.set({ run: ids.filter((id) => id !== job.id) })}>
              {unique(jobs, job)} ×
            </button>
          ))}
        </div>
        <details open={ids.length < 2}>
          <summary>{t("compare.add")}</summary>
          <input type="search" aria-label={t("jobs.search")} placeholder={t("jobs.search")} value={adding.value} onInput={(event) => (adding.value = event.currentTarget.value)} />
          <ul>
            {(found.data.value?.items ?? [])
              .filter((job) => !ids.includes(job.id))
              .map((job) => (
                <li key={job.id} class="row">
                  <button type="button" class="button quiet small" onClick={() => query.set({ run: [...ids, job.id] })}>
                    + {job.name}
                  </button>
                  <Badge state={job.state} />
                  <span class="muted small">{job.type}</span>
                </li>
              ))}
          </ul>
        </details>
      </section>
      {ids.length === 0 ? (
        <Empty title={t("compare.none")}>{t("compare.noneText")}</Empty>
      ) : runs.data.value === undefined ? (
        <Loading />
      ) : (
        <div class="stack compare">
          <div class="toolbar">
            <label for="group">{t("compare.group")}</label>
            <select id="group" value={group} onChange={(event) => query.set({ group: event.currentTarget.value || null })}>
              <option value="">–</option>
              {paths.map(({ path }) => (
                <option key={path} value={path}>
                  {path}
                </option>
              ))}
            </select>
            <button type="button" class="chip" aria-pressed={mean} onClick={() => query.set({ mean: mean ? null : "1" })}>
              {t("compare.mean")}
            </button>
          </div>
          <ChartTools />
          <Charts runs={grouped} mean={mean} />
          <section class="card">
            <h2>{t("compare.values")}</h2>
            <Values jobs={jobs} />
          </section>
          {jobs.length > 1 ? (
            <section class="card">
              <h2>{t("compare.differences")}</h2>
              {paths.length ? (
                <div class="table-box">
                  <table>
                    <thead>
                      <tr>
                        <th>{t("compare.key")}</th>
                        {jobs.map((job) => (
                          <th key={job.id}>
                            <a href={`/jobs/${job.id}`}>{unique(jobs, job)}</a>
                          </th>
                        ))}
                      </tr>
                    </thead>
                    <tbody>
                      {paths.map(({ path, values }) => (
                        <tr key={path}>
                          <td class="mono">{path}</td>
                          {values.map((value, index) => (
                            <td key={index} class="mono wrap">
                              {value}
                            </td>
                          ))}
                        </tr>
                      ))}
                    </tbody>
                  </table>
                </div>
              ) : (
                <p class="muted">{t("compare.same")}</p>
              )}
            </section>
          ) : null}
        </div>
      )}
    </>
  );
}

/** A run's name, with its id where several have that name. */
function unique(jobs: readonly Job[], job: Job): string {
  return jobs.filter((other) => other.name === job.name).length > 1 ? `${job.name} (${job.id.slice(-4)})` : job.name;
}

function Values({ jobs }: { jobs: readonly Job[] }) {
  const all = useData(
    (signal) => Promise.all(jobs.map((job) => need(api.GET("/api/v1/jobs/{ref}/series/names", { params: { path: { ref: job.id } }, signal })))),
    [jobs.map((job) => job.id).join()],
  );
  if (all.data.value === undefined) return <Loading />;
  const names = [...new Set(all.data.value.flatMap((one) => one.items.map((item) => item.name)))].sort();
  return (
    <div class="table-box">
      <table>
        <thead>
          <tr>
            <th>{t("compare.metric")}</th>
            {jobs.map((job) => (
              <th key={job.id} class="num">
                {unique(jobs, job)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {names.map((name) => (
            <tr key={name}>
              <td class="mono">{name}</td>
              {all.data.value!.map((one, index) => {
                const item = one.items.find((found) => found.name === name);
                return (
                  <td key={index} class="num">
                    {item ? (
                      <>
                        {number(item.last)}
                        <div class="muted small">
                          {number(item.min)} – {number(item.max)}
                        </div>
                      </>
                    ) : (
                      "–"
                    )}
                  </td>
                );
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

// All jobs: filtered, sorted, stopped together. The list is the API's page by page, however long it is.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { api, type Job, need } from "../api/client";
import { useData } from "../api/use";
import { t, tOr } from "../i18n";
import { number } from "../lib/format";
import { reason, why } from "../lib/sentences";
import { Ago, attempt, Badge, Empty, Failure, Loading, Meter, Span, sure } from "../ui/parts";
import { Pager } from "../ui/pager";
import { useQuery } from "../ui/query";
import { useTitle } from "../ui/title";

const STATES = ["queued", "provisioning", "running", "stopping", "succeeded", "failed", "stopped"] as const;
const TYPES = ["command", "pt", "sft", "rm", "dpo", "ppo", "grpo", "serve"] as const;
type State = (typeof STATES)[number];
type Type = (typeof TYPES)[number];
type Sort = "created" | "name" | "state" | "duration";
const PAGE = 50;

export function Jobs() {
  useTitle(t("nav.jobs"));
  const query = useQuery();
  const states = query.all("state") as State[];
  const type = query.get("type");
  const owner = query.get("owner");
  const text = query.get("q");
  const sort = (query.get("sort") || "created") as Sort;
  const cursor = query.get("after");
  const search = useRef<HTMLInputElement>(null);
  const chosen = useSignal<ReadonlySet<string>>(new Set());
  const typing = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  const filters = { state: states, type: type ? [type as Type] : [], q: text || undefined, owner: owner || undefined, sort };
  const page = useData(
    (signal) => need(api.GET("/api/v1/jobs", { params: { query: { ...filters, limit: PAGE, cursor: cursor || undefined } }, signal })),
    [JSON.stringify(filters), cursor],
    ["jobs"],
    1500,
  );
  const counts = useData((signal) => need(api.GET("/api/v1/jobs/counts", { params: { query: filters }, signal })), [JSON.stringify(filters)], ["jobs"], 2000);
  useEffect(() => {
    if (query.get("focus")) search.current?.focus();
  }, []);
  const items = page.data.value?.items ?? [];
  const stoppable = items.filter((job) => chosen.value.has(job.id) && !job.finished_at);
  const toggle = (id: string) => {
    const next = new Set(chosen.value);
    if (!next.delete(id)) next.add(id);
    chosen.value = next;
  };
  const stopChosen = async () => {
    const ids = stoppable.map((job) => job.id);
    if (!(await sure(t("jobs.stopMany", { count: ids.length }), t("jobs.stopManyText"), t("jobs.stop")))) return;
    await attempt(() => need(api.POST("/api/v1/jobs/stop", { body: { jobs: ids } })), t("jobs.stopping", { count: ids.length }));
    chosen.value = new Set();
    page.reload();
  };
  const head = (key: Sort, label: string, more = "") => (
    <th class={more} aria-sort={sort === key ? "descending" : undefined}>
      <button type="button" onClick={() => query.set({ sort: key === "created" ? null : key, after: null })}>
        {label} {sort === key ? "↓" : ""}
      </button>
    </th>
  );
  return (
    <>
      <header class="page-head">
        <h1 tabIndex={-1} class="grow">
          {t("nav.jobs")}
        </h1>
        <a class="button primary" href="/submit">
          {t("jobs.new")}
        </a>
      </header>
      <div class="toolbar">
        <input
          ref={search}
          type="search"
          aria-label={t("jobs.search")}
          placeholder={t("jobs.search")}
          value={text}
          maxLength={100}
          onInput={(event) => {
            const value = event.currentTarget.value;
            clearTimeout(typing.current);
            typing.current = setTimeout(() => query.set({ q: value || null, after: null, focus: null }), 250);
          }}
        />
        <select aria-label={t("jobs.type")} value={type} onChange={(event) => query.set({ type: event.currentTarget.value || null, after: null })}>
          <option value="">{t("jobs.allTypes")}</option>
          {TYPES.map((one) => (
            <option key={one} value={one}>
              {one}
            </option>
          ))}
        </select>
        <div class="chips" role="group" aria-label={t("jobs.state")}>
          {STATES.map((state) => (
            <button
              key={state}
              type="button"
              class="chip"
              aria-pressed={states.includes(state)}
              onClick={() => query.set({ state: states.includes(state) ? states.filter((one) => one !== state) : [...states, state], after: null })}
            >
              {tOr(`state.${state}`, state)} <span class="muted">{counts.data.value?.states[state] ?? 0}</span>
            </button>
          ))}
        </div>
        <span class="grow" />
        {chosen.value.size > 1 ? (
          <a class="button" href={`/compare?${[...chosen.value].map((id) => `run=${id}`).join("&")}`}>
            {t("jobs.compareChosen", { count: chosen.value.size })}
          </a>
        ) : null}
        {stoppable.length ? (
          <button type="button" class="button danger" onClick={() => void stopChosen()}>
            {t("jobs.stopChosen", { count: stoppable.length })}
          </button>
        ) : null}
      </div>
      {page.error.value ? <Failure error={page.error.value} /> : null}
      {page.data.value === undefined ? (
        <Loading />
      ) : items.length === 0 ? (
        <div class="card">
          {states.length || type || text || owner ? (
            <Empty title={t("jobs.noneMatch")}>
              <button type="button" class="button" onClick={() => query.set({ state: null, type: null, q: null, owner: null, after: null })}>
                {t("jobs.clear")}
              </button>
            </Empty>
          ) : (
            <Empty title={t("jobs.none")} command="navarch submit jobs/examples/demo-sft.yaml --follow">
              <a href="/submit">{t("overview.submitHere")}</a>
            </Empty>
          )}
        </div>
      ) : (
        <div class="table-box">
          <table>
            <thead>
              <tr>
                <th class="tight">
                  <input
                    type="checkbox"
                    aria-label={t("jobs.chooseAll")}
                    checked={items.every((job) => chosen.value.has(job.id))}
                    onChange={(event) => (chosen.value = event.currentTarget.checked ? new Set(items.map((job) => job.id)) : new Set())}
                  />
                </th>
                {head("name", t("jobs.name"))}
                <th class="tight optional">{t("jobs.type")}</th>
                {head("state", t("jobs.state"), "tight")}
                <th class="optional">{t("jobs.detail")}</th>
                <th class="tight optional">{t("jobs.owner")}</th>
                {head("created", t("jobs.age"), "tight num")}
                {head("duration", t("jobs.ran"), "tight num optional")}
              </tr>
            </thead>
            <tbody>
              {items.map((job) => (
                <tr key={job.id}>
                  <td>
                    <input type="checkbox" aria-label={t("jobs.choose", { name: job.name })} checked={chosen.value.has(job.id)} onChange={() => toggle(job.id)} />
                  </td>
                  <td class="wrap">
                    <a href={`/jobs/${job.id}`}>{job.name}</a>
                  </td>
                  <td class="optional">{job.type}</td>
                  <td>
                    <Badge state={job.state} />
                  </td>
                  <td class="optional">
                    <Detail job={job} />
                  </td>
                  <td class="optional">{job.owner}</td>
                  <td class="num">
                    <Ago at={job.created_at} />
                  </td>
                  <td class="num optional">
                    <Span from={job.started_at} to={job.finished_at} />
                  </td>
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

function Detail({ job }: { job: Job }) {
  if (job.state === "queued") return <div class="clip muted" title={why(job)}>{why(job)}</div>;
  const { step, total_steps: total, loss } = job.progress ?? {};
  if (step !== null && step !== undefined && !["failed", "stopped"].includes(job.state))
    return (
      <div class="row nowrap">
        {total ? <Meter share={step / total} label={t("jobs.progress")} /> : null}
        <span class="small muted">
          {t("jobs.step", { step, total: total ?? "?" })}
          {loss !== null && loss !== undefined ? ` · loss ${number(loss)}` : ""}
        </span>
      </div>
    );
  const said = reason(job.reason, job.message);
  return (
    <div class="clip muted" title={said}>
      {said}
    </div>
  );
}

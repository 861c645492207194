// What runs where, what waits for what, and what happened last.
import { api, type Event, type Gpu, type Host, type Job, need } from "../api/client";
import { useData } from "../api/use";
import { t, tOr } from "../i18n";
import { bytes, clock } from "../lib/format";
import { Ago, Badge, Empty, Failure, Loading, Meter, Span } from "../ui/parts";
import { useTitle } from "../ui/title";
import { eventSentence, why } from "../lib/sentences";

export function Overview() {
  useTitle(t("nav.overview"));
  const hosts = useData((signal) => need(api.GET("/api/v1/hosts", { signal })), [], ["hosts", "jobs"], 2000);
  const live = useData(
    (signal) => need(api.GET("/api/v1/jobs", { params: { query: { state: ["queued", "provisioning", "running", "stopping"], limit: 100 } }, signal })),
    [],
    ["jobs"],
    1000,
  );
  const events = useData((signal) => need(api.GET("/api/v1/events", { params: { query: { limit: 12 } }, signal })), [], ["events"], 1500);
  const system = useData((signal) => need(api.GET("/api/v1/system", { signal })), [], ["hosts"], 10000);
  const jobs = live.data.value?.items ?? [];
  const queued = jobs.filter((job) => job.state === "queued").reverse();
  const running = jobs.filter((job) => job.state !== "queued");
  const gpus = (hosts.data.value?.items ?? []).flatMap((host) => host.gpus ?? []);
  const free = gpus.filter((gpu) => !gpu.holder).length;
  return (
    <>
      <header class="page-head">
        <h1 tabIndex={-1} class="grow">
          {t("nav.overview")}
        </h1>
        <a class="button primary" href="/submit">
          {t("jobs.new")}
        </a>
      </header>
      <div class="stack">
        <div class="stats">
          <Stat label={t("overview.running")} value={running.length} href="/jobs?state=running" />
          <Stat label={t("overview.queued")} value={queued.length} href="/jobs?state=queued" />
          <Stat label={t("overview.gpusFree")} value={gpus.length ? `${free} / ${gpus.length}` : "–"} href="/hosts" />
          <Stat label={t("overview.disk")} value={system.data.value ? bytes(system.data.value.disk_free) : "–"} />
        </div>
        <section class="card">
          <h2>{t("overview.hosts")}</h2>
          {hosts.error.value ? <Failure error={hosts.error.value} /> : null}
          {hosts.data.value ? <div class="stack">{hosts.data.value.items.map((host) => <HostRow key={host.id} host={host} />)}</div> : <Loading />}
        </section>
        <div class="grid">
          <section class="card">
            <h2>{t("overview.running")}</h2>
            {live.data.value === undefined ? (
              <Loading />
            ) : running.length ? (
              <ul class="stack">{running.map((job) => <RunningJob key={job.id} job={job} />)}</ul>
            ) : (
              <Empty title={t("overview.nothingRuns")} command="navarch submit run.yaml">
                <a href="/submit">{t("overview.submitHere")}</a>
              </Empty>
            )}
          </section>
          <section class="card">
            <h2>{t("overview.queue")}</h2>
            {queued.length ? (
              <ol class="stack">
                {queued.map((job) => (
                  <li key={job.id}>
                    <div class="row">
                      <a href={`/jobs/${job.id}`}>{job.name}</a>
                      <span class="muted small">
                        {job.type} · <Ago at={job.created_at} />
                      </span>
                    </div>
                    <div class="muted small wrap">{why(job)}</div>
                  </li>
                ))}
              </ol>
            ) : (
              <p class="muted">{t("overview.nobodyWaits")}</p>
            )}
          </section>
          <section class="card">
            <div class="card-head">
              <h2>{t("nav.events")}</h2>
              <a href="/events">{t("common.all")}</a>
            </div>
            <ul class="stack">{(events.data.value?.items ?? []).map((event) => <EventRow key={event.id} event={event} />)}</ul>
          </section>
        </div>
      </div>
    </>
  );
}

function Stat({ label, value, href }: { label: string; value: string | number; href?: string }) {
  const inside = (
    <>
      <b>{value}</b>
      <span class="muted">{label}</span>
    </>
  );
  return href ? (
    <a class="stat" href={href}>
      {inside}
    </a>
  ) : (
    <div class="stat">{inside}</div>
  );
}

export function HostRow({ host }: { host: Host }) {
  const state = host.reachable ? host.state : "unreachable";
  return (
    <div class="stack">
      <div class="row">
        <a href={`/hosts#${host.name}`}>
          <strong>{host.name}</strong>
        </a>
        <Badge state={state} />
        <span class="muted small">
          {t("host.size", { cpus: host.cpus ?? "–", memory: bytes(host.memory_bytes) })}
        </span>
        {host.message ? <span class="small wrap">{host.message}</span> : null}
      </div>
      {host.gpus?.length ? (
        <div class="slots">
          {host.gpus.map((gpu) => (
            <Slot key={gpu.uuid} gpu={gpu} host={host} />
          ))}
        </div>
      ) : (
        <span class="muted small">{t("host.noGpus")}</span>
      )}
    </div>
  );
}

function Slot({ gpu, host }: { gpu: Gpu; host: Host }) {
  const off = !host.reachable || host.state !== "active";
  const classes = ["slot", gpu.holder ? "taken" : "", gpu.health && gpu.health !== "ok" ? "bad" : "", off ? "off" : ""].join(" ");
  const title = `${gpu.name} · ${gpu.uuid}${gpu.health_message ? ` · ${gpu.health_message}` : ""}`;
  const inside = (
    <>
      <span class="row">
        <span class="grow">GPU {gpu.index ?? "–"}</span>
        {gpu.utilization !== null && gpu.utilization !== undefined ? <span>{Math.round(gpu.utilization)} %</span> : null}
      </span>
      <b>{gpu.holder ?? (gpu.health && gpu.health !== "ok" ? tOr(`health.${gpu.health}`, gpu.health) : t("host.free"))}</b>
      {gpu.memory_used_mib !== null && gpu.memory_used_mib !== undefined ? (
        <Meter share={gpu.memory_used_mib / gpu.memory_mib} label={t("host.memory")} />
      ) : (
        <span class="muted">{bytes(gpu.memory_mib * 1024 * 1024)}</span>
      )}
    </>
  );
  return gpu.job ? (
    <a class={classes} title={title} href={`/jobs/${gpu.job}`}>
      {inside}
    </a>
  ) : (
    <div class={classes} title={title}>
      {inside}
    </div>
  );
}

function RunningJob({ job }: { job: Job }) {
  const { step, total_steps: total } = job.progress ?? {};
  return (
    <li>
      <div class="row">
        <a href={`/jobs/${job.id}`} class="wrap">
          {job.name}
        </a>
        <Badge state={job.state} />
        <span class="muted small">
          {job.type} · <Span from={job.started_at ?? job.created_at} to={null} />
        </span>
      </div>
      {step !== null && step !== undefined && total ? <Meter share={step / total} label={t("jobs.progress")} /> : null}
    </li>
  );
}

export function EventRow({ event, wide = false }: { event: Event; wide?: boolean }) {
  return (
    <li class="small">
      <span class="muted mono">{clock(event.time)}</span>{" "}
      {event.job_id ? <a href={`/jobs/${event.job_id}`}>{event.job_name ?? event.job_id}</a> : null}{" "}
      <span class="wrap">{eventSentence(event)}</span>
      {wide || event.actor !== "controller" ? <span class="muted"> · {event.actor}</span> : null}
    </li>
  );
}

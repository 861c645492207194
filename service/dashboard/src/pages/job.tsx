// One job: how it stands and why, its curves, its log, what it was told and what it left.
import { useLocation, useRoute } from "preact-iso";
import { api, type Event, type Job, need } from "../api/client";
import { useData } from "../api/use";
import { Charts, ChartTools } from "../charts/panel";
import { type Key, t, tOr } from "../i18n";
import { moment, number } from "../lib/format";
import { eventSentence, reason, why } from "../lib/sentences";
import { toYaml } from "../lib/spec";
import { LogView } from "../log/view";
import { Ago, attempt, Badge, Code, Empty, Failure, Loading, Meter, Span, sure } from "../ui/parts";
import { useQuery } from "../ui/query";
import { SshCard } from "../ui/ssh";
import { useTitle } from "../ui/title";

const TABS = ["summary", "charts", "log", "samples", "spec", "containers"] as const;
type Tab = (typeof TABS)[number];

export function JobPage() {
  const { params } = useRoute();
  const ref = params["ref"] ?? "";
  const query = useQuery();
  const { route } = useLocation();
  const tab = ((TABS as readonly string[]).includes(query.get("tab")) ? query.get("tab") : "summary") as Tab;
  const loaded = useData((signal) => need(api.GET("/api/v1/jobs/{ref}", { params: { path: { ref } }, signal })), [ref], [`job/${ref}`], 700);
  const job = loaded.data.value;
  useTitle(job?.name ?? ref);
  if (!job) return loaded.error.value ? <Failure error={loaded.error.value} /> : <Loading />;
  const stop = async () => {
    if (!(await sure(t("job.stopTitle", { name: job.name }), t("job.stopText"), t("jobs.stop")))) return;
    await attempt(() => need(api.POST("/api/v1/jobs/{ref}/stop", { params: { path: { ref: job.id } } })), t("job.stopAsked"));
    loaded.reload();
  };
  const again = async () => {
    const made = await attempt(() => need(api.POST("/api/v1/jobs/{ref}/retry", { params: { path: { ref: job.id } } })), t("job.retried"));
    if (made) route(`/jobs/${made.id}`);
  };
  const remove = async () => {
    if (!(await sure(t("job.removeTitle", { name: job.name }), t("job.removeText"), t("common.delete")))) return;
    const gone = await attempt(async () => {
      await need(api.DELETE("/api/v1/jobs/{ref}", { params: { path: { ref: job.id } } }));
      return true;
    }, t("job.removed"));
    if (gone) route("/jobs");
  };
  return (
    <>
      <header class="page-head">
        <div class="grow">
          <div class="row">
            <h1 tabIndex={-1}>{job.name}</h1>
            <Badge state={job.state} />
          </div>
          <p class="muted wrap">
            {job.type} · {job.id} · {job.owner} · <Ago at={job.created_at} />
          </p>
        </div>
        <a class="button" href={`/submit?from=${job.id}`}>
          {t("job.clone")}
        </a>
        {job.finished_at ? (
          <>
            <button type="button" class="button" onClick={() => void again()}>
              {t("job.retry")}
            </button>
            <button type="button" class="button danger" onClick={() => void remove()}>
              {t("common.delete")}
            </button>
          </>
        ) : (
          <button type="button" class="button danger" disabled={job.state === "stopping"} onClick={() => void stop()}>
            {t("jobs.stop")}
          </button>
        )}
      </header>
      {job.unreachable_since ? <div class="banner bad">{t("job.unreachable", { since: moment(job.unreachable_since) })}</div> : null}
      <nav class="tabs" aria-label={t("job.parts")}>
        {TABS.filter((one) => one !== "samples" || job.type !== "command").map((one) => (
          <a key={one} href={`/jobs/${job.id}${one === "summary" ? "" : `?tab=${one}`}`} aria-current={one === tab ? "page" : undefined}>
            {t(`job.tab.${one}` as Key)}
          </a>
        ))}
      </nav>
      {tab === "summary" ? <Summary job={job} /> : null}
      {tab === "charts" ? (
        <>
          <ChartTools />
          <Charts
            runs={[{ id: job.id, label: job.name, live: !job.finished_at }]}
            onPick={(_, time) => route(`/jobs/${job.id}?tab=log&time=${Math.round(time)}`)}
          />
        </>
      ) : null}
      {tab === "log" ? <LogView job={job} /> : null}
      {tab === "samples" ? <SampleList job={job} /> : null}
      {tab === "spec" ? (
        <section class="card">
          <h2>{t("job.tab.spec")}</h2>
          <Code text={toYaml(job.spec)} label={t("job.tab.spec")} />
        </section>
      ) : null}
      {tab === "containers" ? <Containers job={job} /> : null}
    </>
  );
}

function Summary({ job }: { job: Job }) {
  const events = useData((signal) => need(api.GET("/api/v1/jobs/{ref}/events", { params: { path: { ref: job.id }, query: { limit: 100 } }, signal })), [job.id], [`job/${job.id}`], 1000);
  const { step, total_steps: total, loss, tokens_per_second: speed, eta_s: left } = job.progress ?? {};
  return (
    <div class="two">
      <div class="stack">
        <section class="card">
          <h2>{t("job.now")}</h2>
          <p class="wrap">{job.state === "queued" ? why(job) : reason(job.reason, job.message)}</p>
          {step !== null && step !== undefined ? (
            <div class="stack">
              {total ? <Meter share={step / total} label={t("jobs.progress")} /> : null}
              <p class="muted">
                {t("jobs.step", { step, total: total ?? "?" })}
                {loss !== null && loss !== undefined ? ` · loss ${number(loss)}` : ""}
                {speed ? ` · ${t("job.speed", { speed: number(speed) })}` : ""}
                {left ? (
                  <>
                    {" · "}
                    {t("job.left")} <Span from={0} to={left} />
                  </>
                ) : null}
              </p>
            </div>
          ) : null}
          {job.url ? (
            <p>
              <a href={`/playground?job=${job.id}`}>{t("job.tryIt")}</a> · <code>{job.url}</code>
            </p>
          ) : null}
        </section>
        {job.ssh ? <SshCard name={job.name} ssh={job.ssh} command={`navarch ssh ${job.name}`} folder="/workspace" /> : null}
        {job.artifacts?.length ? (
          <section class="card">
            <h2>{t("job.artifacts")}</h2>
            <ul class="stack">
              {job.artifacts.map((artifact) => (
                <li key={`${artifact.name}@${artifact.version}`} class="wrap">
                  <a href={`/artifacts/${artifact.name}@${artifact.version}`}>
                    {artifact.name}@{artifact.version}
                  </a>{" "}
                  <span class="muted">
                    {artifact.kind} · {artifact.path}
                  </span>
                </li>
              ))}
            </ul>
          </section>
        ) : null}
        {job.inputs?.length ? (
          <section class="card">
            <h2>{t("job.inputs")}</h2>
            <ul class="stack">
              {job.inputs.map((input) => (
                <li key={input.key} class="wrap">
                  <code>{input.key}</code>{" "}
                  {input.version ? (
                    <a href={`/artifacts/${input.name}@${input.version}`}>
                      {input.name}@{input.version}
                    </a>
                  ) : (
                    input.name
                  )}
                </li>
              ))}
            </ul>
          </section>
        ) : null}
        <section class="card">
          <h2>{t("job.facts")}</h2>
          <dl class="facts">
            <dt>{t("job.created")}</dt>
            <dd>{moment(job.created_at)}</dd>
            <dt>{t("job.started")}</dt>
            <dd>{moment(job.started_at)}</dd>
            <dt>{t("job.finished")}</dt>
            <dd>{moment(job.finished_at)}</dd>
            <dt>{t("jobs.ran")}</dt>
            <dd>
              <Span from={job.started_at} to={job.finished_at} />
            </dd>
            <dt>{t("job.priority")}</dt>
            <dd>{job.priority}</dd>
            <dt>{t("job.attempts")}</dt>
            <dd>{job.attempts?.length ?? 0}</dd>
          </dl>
        </section>
      </div>
      <section class="card">
        <h2>{t("job.timeline")}</h2>
        {events.data.value ? <Timeline events={events.data.value.items} /> : <Loading />}
      </section>
    </div>
  );
}

function Timeline({ events }: { events: readonly Event[] }) {
  return (
    <ol class="timeline">
      {events.map((event) => (
        <li key={event.id} class={String(event.data?.["new"] ?? "")}>
          <div>
            <div class="wrap">{eventSentence(event)}</div>
            <div class="muted small">
              {moment(event.time)}
              {event.actor === "controller" ? "" : ` · ${event.actor}`}
            </div>
          </div>
        </li>
      ))}
    </ol>
  );
}

function SampleList({ job }: { job: Job }) {
  const samples = useData((signal) => need(api.GET("/api/v1/jobs/{ref}/samples", { params: { path: { ref: job.id }, query: { limit: 20 } }, signal })), [job.id], [`job/${job.id}`], 4000);
  if (samples.data.value === undefined) return <Loading />;
  if (samples.data.value.items.length === 0) return <Empty title={t("samples.none")}>{t("samples.noneText")}</Empty>;
  return (
    <div class="stack">
      {samples.data.value.items.map((sample) => (
        <section key={`${sample.title}${sample.time}`} class="card">
          <div class="card-head">
            <h2>{sample.title}</h2>
            <span class="muted small">{moment(sample.time)}</span>
          </div>
          <div class="table-box">
            <table>
              <thead>
                <tr>
                  {sample.columns.map((column, index) => (
                    <th key={index}>{tOr(`samples.${column}`, column)}</th>
                  ))}
                </tr>
              </thead>
              <tbody>
                {sample.rows.map((row, index) => (
                  <tr key={index}>
                    {row.map((cell, at) => (
                      <td key={at} class="wrap pre">
                        {cell}
                      </td>
                    ))}
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        </section>
      ))}
    </div>
  );
}

function Containers({ job }: { job: Job }) {
  const plan = useData((signal) => need(api.GET("/api/v1/jobs/{ref}/plan", { params: { path: { ref: job.id } }, signal })), [job.id]);
  return (
    <div class="stack">
      {[...(job.attempts ?? [])].reverse().map((one) => (
        <section key={one.number} class="card">
          <div class="card-head">
            <h2>{t("log.attemptNumber", { number: one.number })}</h2>
            <span class="muted wrap">{reason(one.reason, one.message)}</span>
          </div>
          <div class="table-box">
            <table>
              <thead>
                <tr>
                  <th>{t("log.rank")}</th>
                  <th>{t("container.host")}</th>
                  <th>{t("jobs.state")}</th>
                  <th>{t("container.exit")}</th>
                  <th>{t("container.name")}</th>
                  <th>GPU</th>
                  <th>{t("container.ports")}</th>
                </tr>
              </thead>
              <tbody>
                {(one.replicas ?? []).map((replica) => (
                  <tr key={replica.node_rank}>
                    <td>{replica.node_rank}</td>
                    <td>{replica.host}</td>
                    <td>{tOr(`replica.${replica.state}`, replica.state)}</td>
                    <td>
                      {replica.exit_code ?? "–"}
                      {replica.oom_killed ? ` ${t("container.oom")}` : ""}
                    </td>
                    <td class="wrap">{replica.container_name}</td>
                    <td class="wrap small">{replica.gpus?.join(", ") || "–"}</td>
                    <td>
                      {Object.entries(replica.ports ?? {}).map(([inside, outside]) => (
                        <div key={inside}>
                          {inside} → <PortLink host={replica.host} port={outside} />
                        </div>
                      ))}
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        </section>
      ))}
      <section class="card">
        <h2>{t("container.exact")}</h2>
        {plan.error.value ? <p class="muted">{plan.error.value.message}</p> : null}
        {(plan.data.value?.replicas ?? []).map((replica) => (
          <div key={replica.node_rank} class="stack">
            <dl class="facts">
              <dt>{t("container.image")}</dt>
              <dd>{replica.image}</dd>
              <dt>{t("container.mounts")}</dt>
              <dd>{replica.mounts?.map((mount) => <div key={mount} class="mono wrap">{mount}</div>)}</dd>
            </dl>
            <Code text={replica.command.map(quote).join(" ")} wrapped label={t("container.command")} />
            <details>
              <summary>{t("container.environment")}</summary>
              <Code text={Object.entries(replica.environment ?? {}).map(([key, value]) => `${key}=${value}`).join("\n")} label={t("container.environment")} />
            </details>
          </div>
        ))}
        {plan.data.value?.notes?.map((note) => <p key={note} class="muted">{note}</p>)}
      </section>
    </div>
  );
}

function PortLink({ host, port }: { host: string | null | undefined; port: number }) {
  const at = host === "local" || !host ? location.hostname : host;
  return (
    <a href={`http://${at}:${port}`} target="_blank" rel="noreferrer">
      {port}
    </a>
  );
}

function quote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}


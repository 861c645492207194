// Workspaces: long-lived containers for people, with an address that stays.
import { useSignal } from "@preact/signals";
import { useLocation, useRoute } from "preact-iso";
import { stringify } from "yaml";
import { api, ApiError, need, type Schemas } from "../api/client";
import { useData } from "../api/use";
import { t } from "../i18n";
import { workspaceSpec, type WorkspaceForm } from "../lib/workspace";
import { moment } from "../lib/format";
import { eventSentence } from "../lib/sentences";
import { Ago, attempt, Badge, Code, Copy, Empty, Failure, Field, Loading, say, sure } from "../ui/parts";
import { SshCard, sshCommand } from "../ui/ssh";
import { useTitle } from "../ui/title";

type Workspace = Schemas["Workspace"];
interface FieldError {
  path: string;
  message: string;
}

export function Workspaces() {
  useTitle(t("nav.workspaces"));
  const page = useData((signal) => need(api.GET("/api/v1/workspaces", { params: { query: { limit: 100 } }, signal })), [], ["workspaces"], 2000);
  const found = page.data.value?.items;
  return (
    <>
      <header class="page-head">
        <h1 tabIndex={-1} class="grow">
          {t("nav.workspaces")}
        </h1>
      </header>
      <div class="stack">
        {page.error.value ? <Failure error={page.error.value} /> : null}
        {found === undefined ? (
          <Loading />
        ) : found.length === 0 ? (
          <div class="card">
            <Empty title={t("workspaces.none")} command="navarch workspace create NAME">
              {t("workspaces.noneText")}
            </Empty>
          </div>
        ) : (
          <Table found={found} />
        )}
        <Create />
      </div>
    </>
  );
}

function Table({ found }: { found: Workspace[] }) {
  return (
    <div class="table-box">
      <table>
        <thead>
          <tr>
            <th>{t("jobs.name")}</th>
            <th class="tight">{t("jobs.state")}</th>
            <th class="optional">{t("workspaces.owner")}</th>
            <th class="optional">{t("workspaces.image")}</th>
            <th class="tight num">GPU</th>
            <th>{t("workspaces.ports")}</th>
            <th class="tight num optional">{t("jobs.age")}</th>
            <th class="tight">SSH</th>
          </tr>
        </thead>
        <tbody>
          {found.map((one) => (
            <tr key={one.id}>
              <td>
                <a href={`/workspaces/${one.name}`}>{one.name}</a>
              </td>
              <td>
                <Badge state={one.state} />
              </td>
              <td class="optional">{one.owner}</td>
              <td class="optional wrap">{one.image}</td>
              <td class="num">{one.gpus?.length || "–"}</td>
              <td class="wrap">
                <Ports of={one} />
              </td>
              <td class="num optional">
                <Ago at={one.created_at} />
              </td>
              <td>
                <Copy text={sshCommand(one.ssh)} label="SSH" />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Its ports but SSH's; as links while something may answer there. */
function Ports({ of }: { of: Workspace }) {
  const ports = Object.entries(of.ports ?? {}).filter(([inside]) => inside !== "22");
  if (ports.length === 0) return <>–</>;
  return (
    <>
      {ports.map(([inside, outside]) => (
        <span key={inside} class="nowrap">
          {of.state === "running" ? (
            <a href={`http://${of.ssh.host}:${outside}/`} rel="noreferrer" target="_blank">
              {outside}
            </a>
          ) : (
            outside
          )}
          <span class="muted small">→{inside}</span>{" "}
        </span>
      ))}
    </>
  );
}

const EMPTY: WorkspaceForm = { name: "", image: "", gpus: "", ports: "", mounts: "", shm: "", max: "" };

function Create() {
  const form = useSignal<WorkspaceForm>(EMPTY);
  const refused = useSignal<ApiError | null>(null);
  const { route } = useLocation();
  const images = useData((signal) => need(api.GET("/api/v1/images", { signal })), [], ["builds"], 5000);
  const set = (changes: Partial<WorkspaceForm>) => (form.value = { ...form.value, ...changes });
  const create = async () => {
    refused.value = null;
    try {
      const made = await need(api.POST("/api/v1/workspaces", { body: workspaceSpec(form.value) as never }));
      form.value = EMPTY;
      route(`/workspaces/${made.name}`);
    } catch (failure) {
      if (failure instanceof ApiError) refused.value = failure;
      else say(t("common.lost"), "bad");
    }
  };
  const text = (name: keyof WorkspaceForm, label: string, help: string, placeholder: string) => (
    <Field id={`workspace-${name}`} label={label} help={help} error={errorOf(refused.value, name)}>
      <input id={`workspace-${name}`} type="text" placeholder={placeholder} value={form.value[name]} list={name === "image" ? "workspace-images" : undefined} onInput={(event) => set({ [name]: event.currentTarget.value })} />
    </Field>
  );
  const many = (name: "ports" | "mounts", label: string, help: string, placeholder: string) => (
    <Field id={`workspace-${name}`} label={label} help={help} error={errorOf(refused.value, name)}>
      <textarea id={`workspace-${name}`} rows={3} spellcheck={false} placeholder={placeholder} value={form.value[name]} onInput={(event) => set({ [name]: event.currentTarget.value })} />
    </Field>
  );
  return (
    <section class="card">
      <h2>{t("workspaces.create")}</h2>
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void create();
        }}
      >
        {refused.value ? <Failure error={refused.value} /> : null}
        <div class="grid">
          {text("name", t("jobs.name"), t("workspaces.nameHelp"), "colossal_env")}
          {text("image", t("workspaces.image"), t("workspaces.imageHelp"), "workspace")}
          {text("gpus", "GPU", t("workspaces.gpusHelp"), "0")}
          {text("shm", t("workspaces.shm"), t("workspaces.shmHelp"), "16GB")}
          {text("max", t("workspaces.max"), t("workspaces.maxHelp"), "7d")}
          {many("ports", t("workspaces.ports"), t("workspaces.portsHelp"), "8095:22\n7000")}
          {many("mounts", t("workspaces.mounts"), t("workspaces.mountsHelp"), "/data/llm:/workspace/LLM")}
        </div>
        <datalist id="workspace-images">
          {(images.data.value?.items ?? []).flatMap((image) => image.tags).map((tag) => (
            <option key={tag} value={tag} />
          ))}
        </datalist>
        <details>
          <summary>YAML</summary>
          <Code text={stringify(workspaceSpec(form.value))} label="YAML" />
        </details>
        <div>
          <button type="submit" class="button primary" disabled={form.value.name.trim() === ""}>
            {t("workspaces.create")}
          </button>
        </div>
      </form>
    </section>
  );
}

/** What the control plane said about this field. */
function errorOf(refused: ApiError | null, name: string): string | undefined {
  const all = (refused?.problem as { problems?: FieldError[] } | undefined)?.problems ?? [];
  return all.find((one) => one.path.split(/[.[]/).includes(name))?.message;
}

/** One workspace: its address, what it is doing, and what happened to it. */
export function WorkspacePage() {
  const { params } = useRoute();
  const { route } = useLocation();
  const ref = params["ref"] ?? "";
  useTitle(ref);
  const path = { params: { path: { ref } } };
  const found = useData((signal) => need(api.GET("/api/v1/workspaces/{ref}", { ...path, signal })), [ref], ["workspaces"], 1000);
  const events = useData((signal) => need(api.GET("/api/v1/workspaces/{ref}/events", { ...path, signal })), [ref], ["workspaces", "events"], 2000);
  if (found.data.value === undefined) return found.error.value ? <Failure error={found.error.value} /> : <Loading />;
  const one = found.data.value;
  const start = () => attempt(() => need(api.POST("/api/v1/workspaces/{ref}/start", { ...path, body: { switch: false } })), t("workspaces.startAsked"));
  const restart = async () => {
    if (!(await sure(t("workspaces.restartTitle", { name: one.name }), t("workspaces.stopText"), t("workspaces.restart")))) return;
    await attempt(() => need(api.POST("/api/v1/workspaces/{ref}/restart", { ...path, body: { switch: false } })), t("workspaces.startAsked"));
  };
  const stop = async () => {
    if (!(await sure(t("job.stopTitle", { name: one.name }), t("workspaces.stopText"), t("workspaces.stop")))) return;
    await attempt(() => need(api.POST("/api/v1/workspaces/{ref}/stop", path)), t("job.stopAsked"));
  };
  const remove = async () => {
    if (!(await sure(t("workspaces.removeTitle", { name: one.name }), t("workspaces.removeText"), t("common.delete")))) return;
    const gone = await attempt(() => need(api.DELETE("/api/v1/workspaces/{ref}", path)), t("workspaces.removed"));
    if (gone) route("/workspaces");
  };
  const longer = () => attempt(() => need(api.POST("/api/v1/workspaces/{ref}/extend", { ...path, body: { by: 86400 } })), t("workspaces.extended"));
  const rests = one.state === "stopped" || one.state === "failed";
  return (
    <>
      <header class="page-head">
        <div class="grow">
          <div class="row">
            <h1 tabIndex={-1}>{one.name}</h1>
            <Badge state={one.state} />
          </div>
          <p class="muted wrap">{one.message}</p>
        </div>
        <div class="row">
          {rests ? (
            <button type="button" class="button primary" onClick={() => void start()}>
              {t("workspaces.start")}
            </button>
          ) : null}
          {one.state === "running" ? (
            <>
              <button type="button" class="button" onClick={() => void restart()}>
                {t("workspaces.restart")}
              </button>
              <button type="button" class="button" onClick={() => void stop()}>
                {t("workspaces.stop")}
              </button>
            </>
          ) : null}
          {one.state === "removing" ? null : (
            <button type="button" class="button danger" onClick={() => void remove()}>
              {t("common.delete")}
            </button>
          )}
        </div>
      </header>
      <div class="stack">
        <SshCard name={one.name} ssh={one.ssh} command={`navarch workspace ssh ${one.name}`} folder="/workspace" />
        <div class="grid">
          <section class="card">
            <h2>{t("workspaces.facts")}</h2>
            <dl class="facts">
              <dt>{t("workspaces.owner")}</dt>
              <dd>{one.owner}</dd>
              <dt>{t("workspaces.image")}</dt>
              <dd class="wrap">{one.image}</dd>
              <dt>{t("workspaces.host")}</dt>
              <dd>{one.host}</dd>
              <dt>GPU</dt>
              <dd class="wrap">{one.gpus?.join(", ") || "–"}</dd>
              <dt>{t("workspaces.ports")}</dt>
              <dd class="wrap">
                <Ports of={one} />
              </dd>
              <dt>{t("workspaces.home")}</dt>
              <dd class="wrap mono">{one.home}</dd>
              <dt>{t("workspaces.runs")}</dt>
              <dd>
                <Ago at={one.ready_at} />
              </dd>
              {one.runs_until ? (
                <>
                  <dt>{t("workspaces.until")}</dt>
                  <dd>
                    {moment(one.runs_until)}{" "}
                    <button type="button" class="button small" onClick={() => void longer()}>
                      {t("workspaces.dayLonger")}
                    </button>
                  </dd>
                </>
              ) : null}
            </dl>
          </section>
          <section class="card">
            <h2>{t("workspaces.spec")}</h2>
            <Code text={stringify(one.spec, { lineWidth: 100 })} label={t("workspaces.spec")} />
          </section>
        </div>
        <section class="card">
          <h2>{t("nav.events")}</h2>
          <ul class="stack">
            {(events.data.value?.items ?? []).map((event) => (
              <li key={event.id} class="wrap">
                <span class="mono muted small">{moment(event.time)}</span> {eventSentence(event)}
              </li>
            ))}
          </ul>
        </section>
      </div>
    </>
  );
}

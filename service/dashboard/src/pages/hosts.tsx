// What Navarch runs on: each host with its GPUs, who holds them, and how it is.
import { api, need } from "../api/client";
import { useData } from "../api/use";
import { t } from "../i18n";
import { bytes } from "../lib/format";
import { Ago, Badge, Failure, Loading } from "../ui/parts";
import { useTitle } from "../ui/title";
import { HostRow } from "./overview";

export function Hosts() {
  useTitle(t("nav.hosts"));
  const hosts = useData((signal) => need(api.GET("/api/v1/hosts", { signal })), [], ["hosts", "jobs"], 2000);
  const health = useData((signal) => need(api.GET("/api/v1/system", { signal })), [], ["hosts"], 5000);
  return (
    <>
      <header class="page-head">
        <h1 tabIndex={-1} class="grow">
          {t("nav.hosts")}
        </h1>
      </header>
      {hosts.error.value ? <Failure error={hosts.error.value} /> : null}
      <div class="stack">
        {hosts.data.value === undefined ? <Loading /> : null}
        {hosts.data.value?.items.map((host) => (
          <section key={host.id} class="card" id={host.name}>
            <HostRow host={host} />
            <dl class="facts host-facts">
              <dt>{t("host.engine")}</dt>
              <dd class="wrap">
                {host.url} · {host.engine_version ?? "–"}
              </dd>
              <dt>{t(host.reachable || !host.unreachable_since ? "host.seen" : "host.since")}</dt>
              <dd>
                <Ago at={host.reachable ? host.seen_at : (host.unreachable_since ?? host.seen_at)} />
              </dd>
              <dt>{t("host.address")}</dt>
              <dd>{host.cluster_address ?? host.address}</dd>
              {Object.keys(host.labels ?? {}).length ? (
                <>
                  <dt>{t("host.labels")}</dt>
                  <dd>
                    {Object.entries(host.labels ?? {})
                      .map(([name, value]) => `${name}=${value}`)
                      .join(" ")}
                  </dd>
                </>
              ) : null}
              {host.fingerprint ? (
                <>
                  <dt>{t("host.key")}</dt>
                  <dd class="wrap">{host.fingerprint}</dd>
                </>
              ) : null}
              <dt>{t("host.memory")}</dt>
              <dd>{bytes(host.memory_bytes)}</dd>
              {host.checked_at ? (
                <>
                  <dt>{t("host.findings")}</dt>
                  <dd class="wrap">
                    {host.findings?.length ? (
                      <ul class="stack">
                        {host.findings.map((finding) => (
                          <li key={`${finding.name} ${finding.gpu ?? ""}`}>
                            <b>{finding.name}</b> {finding.detail}
                          </li>
                        ))}
                      </ul>
                    ) : (
                      t("host.nothingWrong")
                    )}{" "}
                    <span class="muted small">
                      <Ago at={host.checked_at} />
                    </span>
                  </dd>
                </>
              ) : null}
            </dl>
          </section>
        ))}
        <section class="card">
          <h2>{t("host.health")}</h2>
          <dl class="facts">
            {(health.data.value?.checks ?? []).map((check) => (
              <>
                <dt key={check.name}>
                  <Badge state={check.ok ? "ready" : "unhealthy"} /> {check.name}
                </dt>
                <dd>{check.detail}</dd>
              </>
            ))}
            {health.data.value ? (
              <>
                <dt>{t("overview.disk")}</dt>
                <dd>{t("host.diskOf", { free: bytes(health.data.value.disk_free), total: bytes(health.data.value.disk_total) })}</dd>
                <dt>{t("host.version")}</dt>
                <dd>
                  Navarch {health.data.value.version} · {health.data.value.deployment}
                </dd>
              </>
            ) : null}
          </dl>
        </section>
      </div>
    </>
  );
}

// Sentences from codes and numbers, in the reader's language; what has no code is shown as the control plane says it.
import type { Event, Job } from "../api/client";
import { t, tOr } from "../i18n";

type Values = Record<string, string | number>;

/** What a queued job waits for. */
export function why(job: Pick<Job, "why">): string {
  return job.why || t("why.soon");
}

/** Why a job is as it is. */
export function reason(code: string | null | undefined, message: string | null | undefined): string {
  if (!code) return message ?? "";
  const known = tOr(`reason.${code}`, message ?? code);
  return message && message !== known ? `${known} (${message})` : known;
}

/** What an event says. */
export function eventSentence(event: Event): string {
  const data = (event.data ?? {}) as Values;
  if (event.kind === "job.state") {
    const state = String(data["new"] ?? "");
    const said = tOr(`event.job.is.${state}`, event.message);
    return data["reason"] ? `${said}: ${tOr(`reason.${data["reason"]}`, event.message)}` : said;
  }
  return tOr(`event.${event.kind}`, event.message, data);
}

// Who may use Navarch: SSH keys that containers authorise, and tokens.
import { useSignal } from "@preact/signals";
import { api, need } from "../api/client";
import { useData } from "../api/use";
import { t } from "../i18n";
import { Ago, attempt, Code, Empty, Field, Loading, sure } from "../ui/parts";
import { useTitle } from "../ui/title";

export function People() {
  useTitle(t("nav.people"));
  return (
    <>
      <header class="page-head">
        <h1 tabIndex={-1} class="grow">
          {t("nav.people")}
        </h1>
      </header>
      <div class="stack">
        <Keys />
        <Tokens />
      </div>
    </>
  );
}

function Keys() {
  const keys = useData((signal) => need(api.GET("/api/v1/keys", { signal })), []);
  const text = useSignal("");
  const add = async () => {
    const added = await attempt(() => need(api.POST("/api/v1/keys", { body: { public_key: text.value } })), t("people.keyAdded"));
    if (added) text.value = "";
    keys.reload();
  };
  const remove = async (fingerprint: string, user: string) => {
    if (!(await sure(t("people.removeKey"), fingerprint, t("common.delete")))) return;
    await attempt(() => need(api.DELETE("/api/v1/keys/{fingerprint}", { params: { path: { fingerprint }, query: { user } } })));
    keys.reload();
  };
  return (
    <section class="card">
      <h2>{t("people.keys")}</h2>
      {keys.data.value === undefined ? (
        <Loading />
      ) : keys.data.value.items.length === 0 ? (
        <Empty title={t("people.noKeys")}>{t("people.noKeysText")}</Empty>
      ) : (
        <div class="table-box">
          <table>
            <thead>
              <tr>
                <th>{t("people.fingerprint")}</th>
                <th class="optional">{t("jobs.type")}</th>
                <th>{t("people.comment")}</th>
                <th class="tight">
                  <span class="visually-hidden">{t("common.actions")}</span>
                </th>
              </tr>
            </thead>
            <tbody>
              {keys.data.value.items.map((key) => (
                <tr key={key.fingerprint}>
                  <td class="mono wrap">{key.fingerprint}</td>
                  <td class="optional">{key.type}</td>
                  <td class="wrap">{key.comment}</td>
                  <td>
                    <button type="button" class="button quiet small" onClick={() => void remove(key.fingerprint, key.user ?? "")}>
                      {t("common.delete")}
                    </button>
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void add();
        }}
      >
        <Field id="key" label={t("people.addKey")} help={t("people.keyHelp")}>
          <textarea id="key" rows={2} spellcheck={false} placeholder="ssh-ed25519 AAAA… name@laptop" value={text.value} onInput={(event) => (text.value = event.currentTarget.value)} />
        </Field>
        <div>
          <button type="submit" class="button" disabled={text.value.trim() === ""}>
            {t("people.addKey")}
          </button>
        </div>
      </form>
    </section>
  );
}

function Tokens() {
  const tokens = useData((signal) => need(api.GET("/api/v1/tokens", { signal })), []);
  const name = useSignal("");
  const made = useSignal<string | null>(null);
  const add = async () => {
    const token = await attempt(() => need(api.POST("/api/v1/tokens", { body: { name: name.value } })));
    if (token) {
      made.value = token.token ?? null;
      name.value = "";
    }
    tokens.reload();
  };
  const remove = async (which: string, user: string) => {
    if (!(await sure(t("people.withdraw", { name: which }), t("people.withdrawText"), t("people.withdrawYes")))) return;
    await attempt(() => need(api.DELETE("/api/v1/tokens/{name}", { params: { path: { name: which }, query: { user } } })));
    tokens.reload();
  };
  return (
    <section class="card">
      <h2>{t("people.tokens")}</h2>
      {tokens.error.value ? <p class="muted">{tokens.error.value.message}</p> : null}
      {tokens.data.value?.items.length ? (
        <div class="table-box">
          <table>
            <thead>
              <tr>
                <th>{t("jobs.name")}</th>
                <th class="tight num">{t("jobs.age")}</th>
                <th class="tight">
                  <span class="visually-hidden">{t("common.actions")}</span>
                </th>
              </tr>
            </thead>
            <tbody>
              {tokens.data.value.items.map((token) => (
                <tr key={token.name}>
                  <td>{token.name}</td>
                  <td class="num">
                    <Ago at={token.created_at} />
                  </td>
                  <td>
                    <button type="button" class="button quiet small" onClick={() => void remove(token.name, token.user ?? "")}>
                      {t("people.withdrawYes")}
                    </button>
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      ) : null}
      {made.value ? (
        <div class="stack">
          <p>{t("people.tokenOnce")}</p>
          <Code text={made.value} wrapped label={t("people.tokens")} />
        </div>
      ) : null}
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void add();
        }}
      >
        <Field id="token-name" label={t("people.addToken")} help={t("people.tokenHelp")}>
          <input id="token-name" type="text" maxLength={60} value={name.value} onInput={(event) => (name.value = event.currentTarget.value)} />
        </Field>
        <div>
          <button type="submit" class="button" disabled={name.value.trim() === ""}>
            {t("people.addToken")}
          </button>
        </div>
      </form>
    </section>
  );
}

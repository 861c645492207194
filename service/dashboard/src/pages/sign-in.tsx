// The way in: a token becomes a cookie.
import { useSignal } from "@preact/signals";
import { signIn } from "../api/session";
import { t } from "../i18n";
import { Field } from "../ui/parts";
import { useTitle } from "../ui/title";

export function SignIn() {
  useTitle(t("session.title"));
  const token = useSignal("");
  const error = useSignal("");
  const submit = async () => {
    try {
      await signIn(token.value.trim());
    } catch (failure) {
      error.value = (failure as Error).message;
    }
  };
  return (
    <main class="sign-in">
      <form
        class="card stack"
        onSubmit={(event) => {
          event.preventDefault();
          void submit();
        }}
      >
        <h1 tabIndex={-1}>Navarch</h1>
        <p class="muted">{t("session.text")}</p>
        <Field id="token" label={t("session.token")} error={error.value || undefined}>
          <input id="token" type="password" autoComplete="current-password" value={token.value} onInput={(event) => (token.value = event.currentTarget.value)} />
        </Field>
        <button type="submit" class="button primary" disabled={token.value.trim() === ""}>
          {t("session.in")}
        </button>
        <p class="muted small">{t("session.help")}</p>
      </form>
    </main>
  );
}

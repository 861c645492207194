// Who is signed in: a token, or the link that `navarch up` prints, becomes a cookie that scripts can't read.
import { signal } from "@preact/signals";
import { api, need, signedOut } from "./client";
import { reconnect } from "./live";

export interface Who {
  name: string;
  role: string;
  /** Signed in by a cookie, so that one can sign out. */
  session: boolean;
}
export const who = signal<Who | null>(null);

/** Finds out who asks. A one-time code in the address is exchanged first, and taken out of it. */
export async function begin(): Promise<void> {
  const at = new URL(location.href);
  const code = at.searchParams.get("code");
  if (code) {
    at.searchParams.delete("code");
    history.replaceState(null, "", at);
    try {
      await need(api.POST("/api/v1/session", { body: { code } }));
    } catch {
      // used up or too old: the form asks for a token
    }
  }
  await look();
}

export async function look(): Promise<void> {
  try {
    who.value = await need(api.GET("/api/v1/session"));
    signedOut.value = false;
    reconnect();
  } catch {
    who.value = null;
  }
}

/** Throws ApiError when the token is not one of this control plane's. */
export async function signIn(token: string): Promise<void> {
  await need(api.POST("/api/v1/session", { body: { token } }));
  await look();
}

export async function signOut(): Promise<void> {
  await need(api.DELETE("/api/v1/session"));
  who.value = null;
  signedOut.value = true;
}

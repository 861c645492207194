// How to log in to a container: the commands, and what IDEs ask for.
import type { Schemas } from "../api/client";
import { t } from "../i18n";
import { Code, Copy } from "./parts";

export type Ssh = Schemas["SshAccess"];

export function sshCommand(ssh: Ssh): string {
  return `ssh -p ${ssh.port} ${ssh.user}@${ssh.host}`;
}

/** `command`: the same by the command line, which knows key and host key. */
export function SshCard({ name, ssh, command, folder }: { name: string; ssh: Ssh; command: string; folder: string }) {
  const config = `Host ${name}\n  HostName ${ssh.host}\n  Port ${ssh.port}\n  User ${ssh.user}\n`;
  return (
    <section class="card">
      <div class="card-head">
        <h2>SSH</h2>
        <Copy text={sshCommand(ssh)} label={t("job.copySsh")} />
        <a class="button small" href={`vscode://vscode-remote/ssh-remote+${name}${folder}`}>
          VS Code
        </a>
      </div>
      <Code text={`${command}\n${sshCommand(ssh)}`} label="SSH" />
      <details>
        <summary>{t("job.ideSettings")}</summary>
        <dl class="facts">
          <dt>PyCharm</dt>
          <dd>{t("job.pycharm", { host: ssh.host, port: ssh.port, user: ssh.user ?? "root" })}</dd>
          <dt>~/.ssh/config</dt>
          <dd>
            <Code text={config} label="~/.ssh/config" />
          </dd>
          {ssh.host_key ? (
            <>
              <dt>{t("job.hostKey")}</dt>
              <dd>
                <Code text={`[${ssh.host}]:${ssh.port} ${ssh.host_key}`} wrapped label={t("job.hostKey")} />
              </dd>
            </>
          ) : null}
        </dl>
      </details>
    </section>
  );
}

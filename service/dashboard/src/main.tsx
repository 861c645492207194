// The dashboard: which page belongs to which address.
import "./style.css";
import { render } from "preact";
import { LocationProvider, Route, Router } from "preact-iso";
import { signedOut } from "./api/client";
import { begin } from "./api/session";
import { t } from "./i18n";
import { ArtifactPage, Artifacts } from "./pages/artifacts";
import { Compare } from "./pages/compare";
import { Events } from "./pages/events";
import { Hosts } from "./pages/hosts";
import { BuildPage, Images } from "./pages/images";
import { JobPage } from "./pages/job";
import { Jobs } from "./pages/jobs";
import { Overview } from "./pages/overview";
import { People } from "./pages/people";
import { Playground } from "./pages/playground";
import { SignIn } from "./pages/sign-in";
import { Submit } from "./pages/submit";
import { WorkspacePage, Workspaces } from "./pages/workspaces";
import { Shell } from "./ui/shell";
import { useTitle } from "./ui/title";

function Missing() {
  useTitle(t("common.missing"));
  return (
    <div class="empty">
      <h1 tabIndex={-1}>{t("common.missing")}</h1>
      <a href="/">{t("nav.overview")}</a>
    </div>
  );
}

function App() {
  if (signedOut.value) return <SignIn />;
  return (
    <LocationProvider>
      <Shell>
        <Router>
          <Route path="/" component={Overview} />
          <Route path="/jobs" component={Jobs} />
          <Route path="/jobs/:ref" component={JobPage} />
          <Route path="/compare" component={Compare} />
          <Route path="/submit" component={Submit} />
          <Route path="/workspaces" component={Workspaces} />
          <Route path="/workspaces/:ref" component={WorkspacePage} />
          <Route path="/images" component={Images} />
          <Route path="/images/builds/:id" component={BuildPage} />
          <Route path="/artifacts" component={Artifacts} />
          <Route path="/artifacts/:ref" component={ArtifactPage} />
          <Route path="/playground" component={Playground} />
          <Route path="/hosts" component={Hosts} />
          <Route path="/people" component={People} />
          <Route path="/events" component={Events} />
          <Route default component={Missing} />
        </Router>
      </Shell>
    </LocationProvider>
  );
}

void begin().then(() => render(<App />, document.getElementById("app")!));

// Getting the files of models: starting it, and how far it is.

/** {start(model), of(model), mayStart}; `onChange()` is called when there is something new. */
export function createPulls({ api, live, toast, t, onChange }) {
  let list = [];
  const unsubscribe = live.subscribe("pulls", (pulls) => {
    list = Array.isArray(pulls) ? pulls : (pulls.pulls ?? []);
    onChange();
  });
  return {
    get mayStart() {
      return live.may("operate");
    },
    of: (model) => list.find((pull) => ["waiting", "running", "interrupted"].includes(pull.state) && pull.models?.includes(model.id)),
    async start(model) {
      try {
        const pull = await api.request("api/models/pull", { body: { models: [model.id] } });
        if (pull?.id) list = [pull, ...list.filter(({ id }) => id !== pull.id)];
        toast(t("draw.model.pull_started", { name: model.name ?? model.id }));
        onChange();
      } catch (error) {
        toast(error.message || t("common.unreachable"), { kind: "error" });
      }
    },
    unmount: unsubscribe,
  };
}

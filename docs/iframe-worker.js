// Search without a server: from the disk browsers refuse workers, and the theme's search is one.
// A worker's script runs in a hidden frame in its place, with the same messages.
(() => {
  if (location.protocol !== "file:") return;
  const inside = `
    self.postMessage = parent.postMessage.bind(parent);
    self.importScripts = (...urls) => urls.reduce(
      (before, url) => before.then(() => new Promise(done => {
        const script = document.createElement("script");
        script.src = url;
        script.addEventListener("load", done);
        document.body.appendChild(script);
      })), Promise.resolve());`;
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const page = this.frame.contentDocument, end = "</" + "script>";
      page.open();
      page.write(`<body><script>${inside}${end}<script src="${url}">${end}</body>`);
      page.close();
      this.ready = new Promise(done => this.frame.contentWindow.addEventListener("load", done));
      this.heard = event => {
        if (event.source !== this.frame.contentWindow) return;
        const same = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(same);
        if (this.onmessage) this.onmessage(same);
      };
      addEventListener("message", this.heard);
    }
    postMessage(data) {
      this.ready.then(() =>
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
      removeEventListener("message", this.heard);
    }
  };
})();

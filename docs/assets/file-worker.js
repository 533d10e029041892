// A page opened from a file may start no worker, and the search runs in one: run its script in a hidden frame there.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc =
        "<script>var deliver = postMessage; postMessage = (data) => parent.postMessage(data, '*')</script>" +
        `<script src="${url}"></script>`;
      this.ready = new Promise((resolve) => this.frame.addEventListener("load", resolve));
      this.receive = (event) => {
        if (event.source === this.frame.contentWindow && this.onmessage) this.onmessage(event);
      };
      window.addEventListener("message", this.receive);
      document.body.append(this.frame);
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.deliver(data, "*"));
    }

    terminate() {
      window.removeEventListener("message", this.receive);
      this.frame.remove();
    }
  };
}

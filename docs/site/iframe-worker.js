// Search in a site that is opened from the disk. Browsers start no worker from a file: address, so the theme's search
// worker is given a hidden frame to run in. From a server this does nothing.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      this.listen = event => {
        if (event.source !== this.frame.contentWindow) return
        this.dispatchEvent(new MessageEvent("message", { data: event.data }))
      }
      addEventListener("message", this.listen)
      this.loaded = new Promise(resolve => (this.frame.onload = resolve))
      const page = this.frame.contentWindow.document
      page.open()
      page.write(`<body><script>
        postMessage = message => parent.postMessage(message, "*")
        importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise(resolve => {
          const script = document.createElement("script")
          script.src = url
          script.onload = resolve
          document.body.appendChild(script)
        })), Promise.resolve())
      <\/script><script src="${url}"><\/script></body>`)
      page.close()
    }

    postMessage(data) {
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      removeEventListener("message", this.listen)
      this.frame.remove()
    }
  }

// Server-Sent Events by fetch, because an EventSource cannot send the key in a header.

import { ask, Refusal } from './api.js'

const MAX_LINE = 32 * 1024 * 1024 // characters; the relay's own limit is far below
const MAX_SILENCE = 120000 // milliseconds; heartbeats come more often than this
const MAX_WAIT = 5000 // milliseconds between two attempts, whatever `retry` asks for

// Parses text, in pieces of any length, into events (WHATWG HTML, section 9.2.6).
export class Parser {
  constructor(dispatch) {
    Object.assign(this, { dispatch, rest: '', scanned: 0, id: '', retry: null, data: [], kind: '' })
  }

  push(text) {
    this.rest += text
    let begin = 0
    const ends = /\r\n|\n|\r/g
    ends.lastIndex = this.scanned
    for (let end; (end = ends.exec(this.rest)); ) {
      // This CR may be the first half of a CRLF whose LF is in the next piece.
      if (end[0] === '\r' && ends.lastIndex === this.rest.length) break
      this.line(this.rest.slice(begin, end.index))
      begin = ends.lastIndex
    }
    this.rest = this.rest.slice(begin)
    this.scanned = this.rest.endsWith('\r') ? this.rest.length - 1 : this.rest.length
    if (this.rest.length > MAX_LINE) throw new RangeError('a line of the stream is too long')
  }

  line(line) {
    if (line === '') return this.end()
    const colon = line.indexOf(':')
    const field = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(colon + (line[colon + 1] === ' ' ? 2 : 1))
    if (field === 'data') this.data.push(value)
    else if (field === 'event') this.kind = value
    else if (field === 'id' && !value.includes('\0')) this.id = value
    else if (field === 'retry' && /^\d+$/.test(value)) this.retry = Number(value)
  }

  end() {
    const { data, kind, id } = this
    this.data = []
    this.kind = ''
    if (data.length) this.dispatch({ kind: kind || 'message', data: data.join('\n'), id })
  }
}

// Follows the stream at a path until it is stopped, and returns the function that stops it. After an interruption the stream resumes
// after the last id. `state` is called with `live`, `waiting` and a reason, or `refused` and a reason, which is final.
export const follow = (path, { event, state }) => {
  const stop = new AbortController()
  let last = ''
  let wait = 1000

  const readOnce = async () => {
    const silence = new AbortController()
    let alarm = 0
    const listen = () => {
      clearTimeout(alarm)
      alarm = setTimeout(() => silence.abort(new Error('the stream has been silent for two minutes')), MAX_SILENCE)
    }
    const parser = new Parser((block) => {
      last = block.id
      event(block)
    })
    parser.id = last
    try {
      listen()
      const headers = { Accept: 'text/event-stream', ...(last ? { 'Last-Event-ID': last } : {}) }
      const answer = await ask(path, { headers, signal: AbortSignal.any([stop.signal, silence.signal]) })
      state('live')
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
      for (;;) {
        listen()
        const { done, value } = await reader.read()
        if (done) return 'the stream has ended'
        parser.push(value)
        wait = Math.min(parser.retry ?? wait, MAX_WAIT)
      }
    } finally {
      clearTimeout(alarm)
    }
  }

  const run = async () => {
    while (!stop.signal.aborted) {
      let why
      try {
        why = await readOnce()
      } catch (error) {
        why = error instanceof Refusal ? error.message : 'the relay cannot be reached'
        // Another attempt would get the same 4xx; a 429 asks to come back.
        const isFinal = error instanceof Refusal && error.status >= 400 && error.status < 500 && error.status !== 429
        if (isFinal && !stop.signal.aborted) return state('refused', why)
      }
      if (stop.signal.aborted) return
      state('waiting', why)
      // Jitter, so that several consoles do not come back together.
      await new Promise((resolve) => setTimeout(resolve, wait * (0.75 + Math.random() / 2)))
    }
  }
  run()
  return () => stop.abort()
}

// A request's duration minus the engine's own time. Environment variables: AO_URL, AO_KEY, USERS,
// SECONDS; ECHO if the answer has no timings, and with it PAUSE_MS, each client's pause after an
// answer, which stands for the wait for the engine.
import http from "k6/http";
import { sleep } from "k6";
import { Trend } from "k6/metrics";

const beside = new Trend("beside_engine", true);
const besideQueue = new Trend("beside_engine_and_queue", true);
const engine = new Trend("engine", true);
const body = JSON.stringify({ prompt: "a small red star", steps: 1, seed: 7 });
const params = {
  headers: { "Content-Type": "application/json", Authorization: `Bearer ${__ENV.AO_KEY}` },
  timeout: "120s",
};

export const options = {
  scenarios: {
    ask: { executor: "constant-vus", vus: Number(__ENV.USERS), duration: `${__ENV.SECONDS}s` },
  },
  summaryTrendStats: ["p(50)", "p(95)", "count"],
};

export default function () {
  const response = http.post(`${__ENV.AO_URL}/generate/sdxl`, body, params);
  if (response.status !== 200) {
    throw new Error(`${response.status}: ${response.body}`);
  }
  const whole = response.timings.duration;
  if (__ENV.ECHO) {
    beside.add(whole);
    besideQueue.add(whole);
    sleep(Number(__ENV.PAUSE_MS) / 1000);
    return;
  }
  const answer = response.json();
  engine.add(answer.prediction_time_ms);
  beside.add(whole - answer.prediction_time_ms);
  besideQueue.add(whole - answer.prediction_time_ms - answer.timings_ms.queue);
}

export function handleSummary(data) {
  return { stdout: JSON.stringify(data.metrics) };
}

// One scenario of generation requests, configured by environment variables:
// AO_URL, AO_KEY, NAME, LORAS (JSON list of asset ids), STEPS, USERS, SECONDS or ITERATIONS.
import http from "k6/http";
import { check } from "k6";
import exec from "k6/execution";

const loras = JSON.parse(__ENV.LORAS);
const users = Number(__ENV.USERS);

export const options = {
  scenarios: {
    generate: __ENV.ITERATIONS
      ? { executor: "shared-iterations", vus: users, iterations: Number(__ENV.ITERATIONS), maxDuration: "5m" }
      : { executor: "constant-vus", vus: users, duration: `${__ENV.SECONDS}s` },
  },
  summaryTrendStats: ["min", "avg", "p(50)", "p(95)", "p(99)", "max", "count"],
};

export default function () {
  const index = exec.scenario.iterationInTest;
  const body = { prompt: "a small red star", steps: Number(__ENV.STEPS), seed: 7 };
  if (loras.length > 0) {
    body.loras = { [loras[index % loras.length]]: 0.8 };
  }
  const response = http.post(`${__ENV.AO_URL}/generate/sdxl`, JSON.stringify(body), {
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${__ENV.AO_KEY}` },
    timeout: "120s",
  });
  check(response, { "is 200 with an image": (r) => r.status === 200 && r.body.includes("image_b64") });
}

export function handleSummary(data) {
  return { stdout: JSON.stringify(data) };
}

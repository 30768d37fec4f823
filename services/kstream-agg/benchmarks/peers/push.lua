-- One record a request, for wrk: PUSH_TOPIC, PUSH_WAIT (true or false), PUSH_SIZE (bytes).
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"records":[{"topic":"' .. os.getenv("PUSH_TOPIC") .. '","data":"'
  .. string.rep("x", tonumber(os.getenv("PUSH_SIZE"))) .. '"}],"wait_for_send":'
  .. os.getenv("PUSH_WAIT") .. "}"
local answered = {}
function setup(thread) table.insert(answered, thread) end
function init() good = 0 end
function response(status) if status == 200 then good = good + 1 end end
function done(summary, latency)
  local total = 0
  for _, thread in ipairs(answered) do total = total + thread:get("good") end
  io.write(string.format(
    '{"good":%d,"requests":%d,"microseconds":%d,"p50_us":%d,"p99_us":%d,"broken":%d}\n',
    total, summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end

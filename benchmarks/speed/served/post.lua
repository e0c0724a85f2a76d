-- wrk's script: POSTs one picture from a file, to the paths after it in turn.
-- Arguments: the picture's file, the share of requests (0 to 1) that go to the second path, the two paths, the Accept header.
-- Prints one line of JSON when done.
local predict, explain, share, sent, explained

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local body = file:read("*a")
  file:close()
  share = tonumber(args[2])
  sent, explained = 0, 0
  predict = wrk.format("POST", args[3], { ["Content-Type"] = "image/jpeg" }, body)
  explain = wrk.format("POST", args[4], { ["Content-Type"] = "image/jpeg", ["Accept"] = args[5] }, body)
end

function request()
  sent = sent + 1
  if explained + 0.5 < share * sent then
    explained = explained + 1
    return explain
  end
  return predict
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "bytes": %d, "failed": %d, "p50": %.6f, "p99": %.6f}\n',
    summary.requests, summary.duration / 1e6, summary.bytes,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end

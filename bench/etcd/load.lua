-- The same work for keevee and etcd: puts of 128-byte values, or linearizable gets, over 10,000 keys.
-- Called by compare.sh as: wrk … -s load.lua URL -- keevee|etcd put|get

local requests = {}

local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function base64(text)
  local coded = {}
  for i = 1, #text, 3 do
    local a, b, c = text:byte(i, i + 2)
    local bits = a * 65536 + (b or 0) * 256 + (c or 0)
    for shift = 3, 0, -1 do
      local sextet = math.floor(bits / 64 ^ shift) % 64
      coded[#coded + 1] = alphabet:sub(sextet + 1, sextet + 1)
    end
    if not b then
      coded[#coded], coded[#coded - 1] = "=", "="
    elseif not c then
      coded[#coded] = "="
    end
  end
  return table.concat(coded)
end

function init(arguments)
  local store, operation = arguments[1], arguments[2]
  local value = string.rep("v", 128)
  local json = { ["Content-Type"] = "application/json" }
  for i = 1, 10000 do
    local key = string.format("key-%08d", i)
    local request
    if store == "keevee" and operation == "put" then
      request = wrk.format("PUT", "/kv/" .. key, nil, value)
    elseif store == "keevee" then
      request = wrk.format("GET", "/kv/" .. key)
    elseif operation == "put" then
      local body = string.format('{"key":"%s","value":"%s"}', base64(key), base64(value))
      request = wrk.format("POST", "/v3/kv/put", json, body)
    else
      request = wrk.format("POST", "/v3/kv/range", json, string.format('{"key":"%s"}', base64(key)))
    end
    requests[i] = request
  end
end

local turn = 0

-- In turn, so that no key is read that was not written.
function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local seconds = summary.duration / 1e6
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("%d %.2f %.2f %d\n", summary.requests / seconds,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, failed))
end

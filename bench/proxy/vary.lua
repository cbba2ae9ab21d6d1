-- Every request asks for another target, and (where the header is given) with another ETag, as the
-- modules of a page do: a proxy that remembers whole heads is to gain by it no more than in life.
local count, last, requests = 20000, 0, {}

function init(args)
  local path, tagged = wrk.path, wrk.headers["If-None-Match"] ~= nil
  for n = 1, count do
    if tagged then
      wrk.headers["If-None-Match"] = string.format('W/"%x-Zm9vYmFyYmF6"', 4096 + n)
    end
    requests[n] = wrk.format(nil, path .. "?" .. n)
  end
end

function request()
  last = last % count + 1
  return requests[last]
end

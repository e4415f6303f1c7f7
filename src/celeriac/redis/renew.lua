-- Count a heartbeat of our holder, and read everyone's.
-- KEYS: a block for each queue. ARGV: separator, holder, milliseconds for which the queues count as looked after.
-- Returns {0} where the holder is not registered with every queue; else {1, number of messages it holds, then for each
-- queue: holder, beat, holder, beat …}.

local function main()
  local reply, held = {1, 0}, 0
  for b = 1, #KEYS, BLOCK do
    local beat = call('HGET', KEYS[b + BEATS], ARGV[2])
    if not beat or tonumber(beat) < 0 then
      return {0}
    end
  end
  insist(KEYS[1 + BEATS])
  for b = 1, #KEYS, BLOCK do
    call('HINCRBY', KEYS[b + BEATS], ARGV[2], 1)
    call('SET', KEYS[b + ALIVE], '1', 'PX', ARGV[3])
    held = held + call('HLEN', KEYS[b + HELD])
    reply[#reply + 1] = call('HGETALL', KEYS[b + BEATS])
  end
  reply[2] = held
  return reply
end

return answer(main)

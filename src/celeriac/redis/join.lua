-- Chords, in the keys of Celery (wire-protocol §9.1).
-- KEYS: .j (parts by index), .d (task:index of each), .t (members added later), .s (size), .c (claim), the group's.

local FOREVER = ''

-- Add a part, unless there is one of that index. Returns all parts in order if they are `size`, and nobody claimed the
-- chord to go on with it; else nil. `ttl`: milliseconds, '' for ever.
local function join_chord(keys, index, task, member, size, ttl)
  if redis.call('EXISTS', keys[5]) == 1 then
    return nil
  end
  if redis.call('ZCOUNT', keys[1], index, index) == 0 and redis.call('SADD', keys[2], task .. ':' .. index) == 1 then
    redis.call('ZADD', keys[1], index, member)
  end
  if ttl ~= FOREVER then
    for n = 1, 4 do
      redis.call('PEXPIRE', keys[n], ttl)
    end
    local left = redis.call('PTTL', keys[6])
    if left >= 0 and left < tonumber(ttl) then
      redis.call('PEXPIRE', keys[6], ttl)
    end
  end
  if redis.call('ZCARD', keys[1]) < size + (redis.call('GET', keys[3]) or 0) then
    return nil
  end
  return redis.call('ZRANGE', keys[1], 0, -1)
end

-- Claim the chord for good and drop its parts. Returns 1 for who did it first, else 0.
local function finish_chord(keys, ttl)
  if redis.call('GET', keys[5]) == 'done' then
    return 0
  end
  if ttl == FOREVER then
    redis.call('SET', keys[5], 'done')
  else
    redis.call('SET', keys[5], 'done', 'PX', ttl)
  end
  redis.call('DEL', keys[1], keys[2], keys[3], keys[4])
  return 1
end

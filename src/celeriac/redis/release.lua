-- Put what a holder holds back to the front of a queue, the oldest foremost, and strike the holder off; a part at a
-- time. It cannot claim or renew from the first part on: its beat is -1.
--
-- KEYS: the queue's block, in it what that holder holds. ARGV: separator, holder, its wake key or "", the beat at which
-- it must still stand or "", 1 if this counts as an attempt, else 0.
-- Returns -1 if it stands elsewhere, else how many messages are left: again, with beat -1.

local holder, wake_key, beat, more = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local b = 1

local function number_of(claim)
  return tonumber(string.match(claim, '^%d+')) or 0
end

local function strike_off()
  call('HDEL', KEYS[b + BEATS], holder)
  if wake_key ~= '' then
    call('ZREM', KEYS[b + SLEEPERS], wake_key)
    call('DEL', wake_key)
  end
  if call('ZREM', KEYS[b + SENTRIES], holder) == 1 then
    wake_sleepers(b, 1, time())
  end
end

local function main()
  if beat ~= '' and call('HGET', KEYS[b + BEATS], holder) ~= beat then
    return -1
  end
  local claims, bytes, done = call('HKEYS', KEYS[b + HELD]), 0, 0
  table.sort(claims, function(one, other) return number_of(one) > number_of(other) end)
  for n, claim in ipairs(claims) do
    local message = call('HGET', KEYS[b + HELD], claim)
    bytes = bytes + #message
    if n > 1000 or (n > 1 and bytes > MUCH) then
      break
    end
    call('RPUSH', ready_key(b, step_of(claim) or '0'), marked(message, more))
    call('HDEL', KEYS[b + HELD], claim)
    done = done + 1
  end
  if done < #claims then
    call('HSET', KEYS[b + BEATS], holder, -1)
  else
    strike_off()
  end
  return #claims - done
end

return answer(main)

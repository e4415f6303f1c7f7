-- Put what a holder holds back to the front of a queue, and strike the holder off once it holds nothing; a part at a
-- time. It cannot claim or renew from the first part on: its beat is -1.
--
-- KEYS: the queue's block, in it what that holder holds. ARGV: separator, holder, its wake key or "", the beat at which
-- it must still stand or "", 1 if this counts as an attempt, else 0, then claims, at most 1000, the youngest first.
-- Returns how many messages are left, -1 if it stands elsewhere; and how many of the claims were dealt with, those at
-- the end not if it is too much at once. Again with beat -1.

local holder, wake_key, beat, more = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local b = 1

local function strike_off()
  call('HDEL', KEYS[b + BEATS], holder)
  if call('EXISTS', KEYS[b + BEATS]) == 0 then
    call('DEL', KEYS[b + ALIVE])
  end
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
    return {-1, 0}
  end
  insist(KEYS[b + BEATS])
  call('HSET', KEYS[b + BEATS], holder, -1)
  local bytes, done = 0, 0
  for n = 6, #ARGV do
    local message = call('HGET', KEYS[b + HELD], ARGV[n])
    if message then
      bytes = bytes + #message
      if done > 0 and bytes > MUCH then
        break
      end
      call('RPUSH', ready_key(b, step_of(ARGV[n]) or '0'), marked(message, more))
      call('HDEL', KEYS[b + HELD], ARGV[n])
    end
    done = done + 1
  end
  local left = call('HLEN', KEYS[b + HELD])
  if left == 0 then
    strike_off()
  end
  return {left, done}
end

return answer(main)

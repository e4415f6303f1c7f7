-- Claim messages: highest priority of all queues first, then by the order of the queues, then oldest.
--
-- KEYS: a block for each queue. ARGV: separator, holder, its wake key, now, limit, number before the first claim,
-- mode, priority steps …
-- Modes: "poll": does not wait for pushes; "busy": had something last time; "idle": had nothing, is sentry or sleeper.
--
-- Returns {-1} if the holder is not registered; else {role, next due or "", then of each message: number of its queue
-- from 0, claim, message}. Roles: 0: something was taken; 1: sentry, to be told of every message; 2: sleeper, to be
-- woken by others. A sentry that takes something is replaced, and more are woken if messages are left.

local holder, wake_key, now, limit = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local number, mode = tonumber(ARGV[6]), ARGV[7]
-- Sentries of a queue: who becomes idle makes up for those below the first number, who leaves below the second.
local ENOUGH, TOO_FEW = 3, 2

local function is_registered()
  for b = 1, #KEYS, BLOCK do
    local beat = call('HGET', KEYS[b + BEATS], holder)
    if not beat or tonumber(beat) < 0 then
      return false
    end
  end
  return true
end

local function promote(b)
  -- What is due joins the line as if it were published now, the earliest first. (In front of what waits it would starve
  -- that, and under load the last to become due would be the first to go.)
  local next_due = call('GET', KEYS[b + NEXT])
  if not next_due or tonumber(next_due) > now then
    return
  end
  unschedule(b, bounded(b, call('ZRANGEBYSCORE', KEYS[b + SCHEDULE], '-inf', ARGV[4], 'LIMIT', 0, 1000)))
end

local function take(b, step, left, bytes, reply)
  -- Take from one list; returns how many and how many bytes more may be taken.
  local key, chunk = ready_key(b, step), 1
  while left > 0 and bytes > 0 do
    local wanted = math.min(left, chunk)
    local found = call('LRANGE', key, -wanted, -1)
    local held, taken = {}, 0
    for n = #found, 1, -1 do
      local message = found[n]
      if #reply > 2 and #message > bytes then
        bytes = 0
        break
      end
      number, taken, bytes = number + 1, taken + 1, bytes - #message
      local claim = string.format('%d:%s', number, step)
      held[#held + 1] = claim
      held[#held + 1] = message
      reply[#reply + 1] = (b - 1) / BLOCK
      reply[#reply + 1] = claim
      reply[#reply + 1] = message
    end
    if taken > 0 then
      call('HSET', KEYS[b + HELD], unpack(held))
      call('LTRIM', key, 0, -taken - 1)
    end
    left = left - taken
    if #found < wanted then
      break
    end
    chunk = math.min(chunk * 4, 250)
  end
  return left, bytes
end

local function leave_for_work(at)
  for b = 1, #KEYS, BLOCK do
    call('ZREM', KEYS[b + SLEEPERS], wake_key)
    if call('ZREM', KEYS[b + SENTRIES], holder) == 1 then
      call('ZREMRANGEBYSCORE', KEYS[b + SENTRIES], '-inf', at - REST)
      local others = call('ZCARD', KEYS[b + SENTRIES])
      if others < TOO_FEW then
        wake_sleepers(b, ENOUGH - others, at)
      end
    end
  end
end

local function wake_for_what_is_left(at)
  for b = 1, #KEYS, BLOCK do
    if call('EXISTS', KEYS[b + SLEEPERS]) == 1 then
      local left = 0
      for n = 8, #ARGV do
        left = left + call('LLEN', ready_key(b, ARGV[n]))
      end
      if left > 0 then
        wake_sleepers(b, math.ceil(left / limit), at)
      end
    end
  end
end

local function role_of_idle(at)
  local role = 2
  for b = 1, #KEYS, BLOCK do
    call('ZREMRANGEBYSCORE', KEYS[b + SENTRIES], '-inf', at - REST)
    if call('ZSCORE', KEYS[b + SENTRIES], holder) or call('ZCARD', KEYS[b + SENTRIES]) < ENOUGH then
      role = 1
    end
  end
  local joins, member, leaves, other = SLEEPERS, wake_key, SENTRIES, holder
  if role == 1 then
    joins, member, leaves, other = SENTRIES, holder, SLEEPERS, wake_key
  end
  for b = 1, #KEYS, BLOCK do
    call('ZADD', KEYS[b + joins], at, member)
    call('EXPIRE', KEYS[b + joins], 60)
    call('ZREM', KEYS[b + leaves], other)
  end
  return role
end

local function main()
  if not is_registered() then
    return {-1}
  end
  insist(KEYS[1 + BEATS])
  if mode == 'idle' then
    call('DEL', wake_key)
  end
  local reply, left, bytes, next_due = {0, ''}, limit, MUCH, nil
  for b = 1, #KEYS, BLOCK do
    promote(b)
  end
  for n = 8, #ARGV do
    for b = 1, #KEYS, BLOCK do
      left, bytes = take(b, ARGV[n], left, bytes, reply)
    end
  end
  for b = 1, #KEYS, BLOCK do
    local due = call('GET', KEYS[b + NEXT])
    if due and (not next_due or tonumber(due) < tonumber(next_due)) then
      next_due = due
    end
  end
  reply[2] = next_due or ''
  if left == limit then
    reply[1] = mode == 'poll' and 1 or role_of_idle(time())
  else
    local at = time()
    if mode == 'idle' then
      leave_for_work(at)
    end
    wake_for_what_is_left(at)
  end
  return reply
end

return answer(main)

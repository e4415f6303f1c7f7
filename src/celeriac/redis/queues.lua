-- Queues: how the keys of one lie in KEYS, and the moves of a message between them. ARGV[1] is the separator between
-- the name of a queue and a priority step.
--
-- A queue's keys are a *block* of KEYS, which a number `b` points to. Messages are bytes here: they are somebody else's
-- JSON, and are never decoded. Lua does not roll back, so what puts a message somewhere comes before what takes it away.

local BEATS, SCHEDULE, SCHEDULED, NEXT, READY, HELD, SENTRIES, SLEEPERS, ALIVE = 0, 1, 2, 3, 4, 5, 6, 7, 8
local BLOCK = 9

-- Bytes that one script moves, more or less: the server does nothing else meanwhile.
local MUCH = 1048576
-- Seconds after which one who did not come again is no sentry and no sleeper any more.
local REST = 6

local function call(command, key, ...)
  -- redis.call, with errors that name the key.
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then
    error({err = reply.err .. ' (' .. command .. ' ' .. tostring(key) .. ')'}, 0)
  end
  return reply
end

local function insist(hash)
  -- What gives memory back must be possible when the server has none left: of a script it refuses only the first write,
  -- and this one takes nothing.
  call('HDEL', hash, '')
end

local function reason_of(failure)
  return type(failure) == 'table' and failure.err or tostring(failure)
end

local function answer(main)
  -- What `main` returns; its error as the reply, with the code that it has.
  local done, reply = pcall(main)
  if done then
    return reply
  end
  return redis.error_reply(reason_of(reply))
end

local function time()
  local now = redis.call('TIME')
  return now[1] + now[2] / 1000000
end

local function ready_key(b, step)
  if step == '0' then
    return KEYS[b + READY]
  end
  return KEYS[b + READY] .. ARGV[1] .. step
end

local function step_of(id)
  -- Of a claim or of a scheduled message: what stands behind the colon.
  return string.match(id, ':(%d+)$')
end

-- A message that was handed out before begins with how often that counted. Celery ignores keys it does not know.
local MARK = '{"celeriac-attempts":'

local function marked(message, more)
  if string.sub(message, 1, #MARK) == MARK then
    local attempts, rest = string.match(message, '^ ?(%d+), ?()', #MARK + 1)
    if attempts then
      return MARK .. string.format('%d', attempts + more) .. ',' .. string.sub(message, rest)
    end
  elseif string.sub(message, 1, 2) == '{"' then
    return MARK .. more .. ',' .. string.sub(message, 2)
  end
  return message
end

local function is_looked_after(b)
  -- Whether somebody of ours renewed lately. Heartbeats alone do not tell: those of the last to be killed stay.
  return call('EXISTS', KEYS[b + ALIVE]) == 1
end

local function move_next(b)
  -- `next` is the earliest due instant. It is written only when it changes: whoever waits is told of that.
  local head = call('ZRANGE', KEYS[b + SCHEDULE], 0, 0, 'WITHSCORES')
  if not head[1] then
    call('DEL', KEYS[b + NEXT])
  elseif call('GET', KEYS[b + NEXT]) ~= head[2] then
    call('SET', KEYS[b + NEXT], head[2])
  end
end

local function schedule(b, id, due, message)
  call('HSET', KEYS[b + SCHEDULED], id, message)
  call('ZADD', KEYS[b + SCHEDULE], due, id)
  local before = call('GET', KEYS[b + NEXT])
  if not before or tonumber(due) < tonumber(before) then
    call('SET', KEYS[b + NEXT], due)
  end
end

local function unschedule(b, ids)
  -- Put these messages into their lists, one after the other; at most 1000.
  if #ids > 0 then
    local found, lists = call('HMGET', KEYS[b + SCHEDULED], unpack(ids)), {}
    for n, id in ipairs(ids) do
      if found[n] then
        local key = ready_key(b, step_of(id))
        lists[key] = lists[key] or {}
        table.insert(lists[key], found[n])
      end
    end
    for key, messages in pairs(lists) do
      call('LPUSH', key, unpack(messages))
    end
    call('HDEL', KEYS[b + SCHEDULED], unpack(ids))
    call('ZREM', KEYS[b + SCHEDULE], unpack(ids))
  end
  move_next(b)
end

local function bounded(b, ids)
  -- The first of these scheduled messages: not too many bytes, but one.
  local first, bytes = {}, 0
  for n, id in ipairs(ids) do
    bytes = bytes + call('HSTRLEN', KEYS[b + SCHEDULED], id)
    if n > 1 and bytes > MUCH then
      break
    end
    first[n] = id
  end
  return first
end

local function wake_sleepers(b, number, now)
  call('ZREMRANGEBYSCORE', KEYS[b + SLEEPERS], '-inf', now - REST)
  local woken = call('ZPOPMAX', KEYS[b + SLEEPERS], number)
  for n = 1, #woken, 2 do
    call('SET', woken[n], '1', 'PX', 10000)
  end
end

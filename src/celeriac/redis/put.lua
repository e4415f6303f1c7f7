-- Records of tasks: which may replace which (`celeriac.backends.base.supersedes`), and how one is stored.
--
-- A record is a document, bytes that nobody decodes here: its state stands near its beginning in every serializer
-- but YAML, which sorts the keys. `celeriac.redis.results` makes the arguments.

local function state_of(key)
  -- State of the document that is there, "?" where it cannot be told; and whether it is JSON.
  local head = redis.call('GETRANGE', key, 0, 63)
  if string.byte(head) == 123 then
    return string.match(head, '^{%s*"status"%s*:%s*"([^"]*)"') or '?', true
  end
  if string.find(head, '^[%a_]+:') then -- YAML
    return string.match('\n' .. redis.call('GET', key), '\nstatus: ([%w_]+)\n') or '?', false
  end
  local _, last = string.find(head, 'status', 1, true)
  if not last or string.byte(head) < 128 then -- compressed, or of unknown kind
    return '?', false
  end
  local rest = string.sub(head, last + 1)
  for _, state in ipairs({'SUCCESS', 'RETRY'}) do
    local length = string.char(#state)
    local packed = string.char(160 + #state) .. state
    local pickled = '\148\140' .. length .. state .. '\148'
    if string.sub(rest, 1, #packed) == packed or string.sub(rest, 1, #pickled) == pickled
        or string.find(rest, '^q.X' .. length .. '%z%z%z' .. state .. 'q') then
      return state, false
    end
  end
  return 'OTHER', false
end

local function retries_of(document)
  local read, meta = pcall(cjson.decode, document)
  return read and type(meta) == 'table' and tonumber(meta.retries) or 0
end

-- Store a document, whatever is there. `ttl`: milliseconds, '' for ever.
local function store_record(key, document, ttl)
  if ttl == '' then
    redis.call('SET', key, document)
  else
    redis.call('SET', key, document, 'PX', ttl)
  end
  redis.call('PUBLISH', key, document)
  return 1
end

-- Store a document where it supersedes the present one. `guard`: how often the task had been retried, '' where the
-- new state is final. Returns 1: stored; 0: the present one stays; -1: it cannot be told, nothing was stored.
local function put_record(key, document, ttl, guard)
  local is_first
  -- First of all the common case; what is there is looked at only if there is something.
  if ttl == '' then
    is_first = redis.call('SET', key, document, 'NX')
  else
    is_first = redis.call('SET', key, document, 'NX', 'PX', ttl)
  end
  if is_first then
    redis.call('PUBLISH', key, document)
    return 1
  end
  local state, is_json = state_of(key)
  if state == 'SUCCESS' then
    return 0
  end
  if state == '?' then
    return -1
  end
  if state == 'RETRY' and guard ~= '' then
    if not is_json then
      return -1
    end
    if retries_of(redis.call('GET', key)) > tonumber(guard) then
      return 0
    end
  end
  return store_record(key, document, ttl)
end

-- Puts many entries into one feed, sorted by ID and each once. Returns 1 if the feed is there afterwards, else 0.
-- KEYS: feed. ARGV: "rebuild" or "add", most entries in a feed, seconds to live, entries …
--
-- "rebuild" also takes in what was pushed while the entries were being read, and makes the feed if there is none.
-- But if neither the feed nor the note of the rebuild is there any more, pushes may have been missed: then it does
-- nothing, and the caller reads again.
-- "add" changes only a feed that exists or is being rebuilt.
local feed, rebuilding = KEYS[1], KEYS[1] .. ':rebuilding'
local mode, length, ttl = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local pushed = redis.call('LRANGE', rebuilding, 0, -1)
local present = redis.call('LRANGE', feed, 0, -1)

local oldest = '' -- what is older than that does not belong into the feed
if mode == 'add' then
    for i = 4, #ARGV do redis.call('LPUSHX', rebuilding, ARGV[i]) end
    if #present == 0 then return 0 end
    -- A feed that was cut ends above its true end (the entry 0…0_0). Entries below the cut would hide those of other
    -- owners between, which only the shards have.
    oldest = present[#present]
elseif #pushed == 0 and #present == 0 then
    return 0
end

local seen, entries = {}, {}
local function take(entry)
    -- The note of a rebuild begins with an empty entry.
    if entry ~= '' and entry >= oldest and not seen[entry] then
        seen[entry] = true
        entries[#entries + 1] = entry
    end
end
for i = 4, #ARGV do take(ARGV[i]) end
for _, entry in ipairs(present) do take(entry) end
if mode == 'rebuild' then
    for _, entry in ipairs(pushed) do take(entry) end
    redis.call('DEL', rebuilding)
end
table.sort(entries, function(a, b) return a > b end)

redis.call('DEL', feed)
for i = 1, math.min(#entries, length) do redis.call('RPUSH', feed, entries[i]) end
redis.call('EXPIRE', feed, ttl)
return 1

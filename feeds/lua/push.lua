-- Puts one entry into many feeds: at its place by ID, once, and only where a feed exists or is being rebuilt.
-- KEYS: feeds. ARGV: entry, most entries in a feed.
-- Each call from here costs as much as the work in it: two of them are the usual way, three for a full feed.
local call, entry, length = redis.call, ARGV[1], tonumber(ARGV[2])

for _, feed in ipairs(KEYS) do
    local newest = call('LINDEX', feed, 0)
    if not newest then
        -- Only where there is no feed: what a feed holds, the end of a rebuild takes over (merge.lua).
        call('LPUSHX', feed .. ':rebuilding', entry)
    elseif entry > newest then
        if call('LPUSH', feed, entry) > length then call('RPOP', feed) end
    elseif entry ~= newest then
        -- Late, or a retry: find its place.
        local entries = call('LRANGE', feed, 0, -1)
        for _, other in ipairs(entries) do
            if other == entry then break end
            if other < entry then
                call('LINSERT', feed, 'BEFORE', other, entry)
                call('LTRIM', feed, 0, length - 1)
                break
            end
        end
    end
end

#!/usr/bin/perl -T
# munin-node, with its plugins, their settings and their state in other places than Debian's: for the local stack.
# These are not in munin-node.conf, but in a module.
#     node.pl DIRECTORY_OF_plugins_AND_plugin-conf.d DIRECTORY_OF_STATE [munin-node's arguments]
use strict;
use warnings;
use Munin::Common::Defaults;

BEGIN {
    ($Munin::Common::Defaults::MUNIN_CONFDIR) = shift(@ARGV) =~ /(.*)/;
    ($Munin::Common::Defaults::MUNIN_PLUGSTATE) = shift(@ARGV) =~ /(.*)/;
    ($ENV{PATH}) = "/usr/sbin:/usr/bin:/sbin:/bin";
}
require "/usr/sbin/munin-node";
exit main();

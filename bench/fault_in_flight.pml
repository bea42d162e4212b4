/* SPDX-License-Identifier: GPL-2.0-or-later */
/* scenarios/fault_in_flight.py for SPIN: a conversion to private against a host fault on the same page of guest_memfd.
 *
 * One atomic block is one step of gmemu's: it waits, acts, and lets go of locks, as nobody need be asked for that.  What
 * gmemu has besides (descriptors, SRCU, memslots: nothing here changes them) isn't in it.
 *
 * -D NO_REFERENCE_CHECK is the variant no-reference-check; -D REFCOUNT_WAIT is refcount-wait, which waits where gmemu's
 * tries again: what is a livelock there is a deadlock here.
 */

mtype = { running, converted, busy, loaded, sigbus };

bool inv_writer; byte inv_readers;	/* the file's invalidate lock */
bool mmap_reader, mmu_lock, page_table_lock, folio_lock;
bool is_private, cached, uptodate, mapped, in_batch;
byte refs, seq, in_progress, ended;
mtype convert_is = running, touch_is = running;

inline finish()
{
	atomic {
		ended++;
		if
		:: ended == 2 ->
			assert(!(is_private && mapped));			/* check_host() */
			assert(!(convert_is == busy && touch_is == sigbus))	/* holds() */
		:: else
		fi
	}
}

inline notifier_start()
{
	atomic { !mmu_lock -> mmu_lock = true };
	atomic { in_progress++; mmu_lock = false }
}

inline notifier_end()
{
	atomic { !mmu_lock -> mmu_lock = true };
	atomic { seq++ };
	atomic { in_progress--; mmu_lock = false }
}

inline unmap()
{
	notifier_start();
	atomic { !page_table_lock -> page_table_lock = true };
	atomic {
		if
		:: mapped -> mapped = false; refs--
		:: else
		fi;
		page_table_lock = false
	};
	notifier_end()
}

/* Nobody but the page cache may hold the page; LRU batches are drained twice before somebody is blamed. */
inline check_references()
{
	do
	:: atomic { !cached || refs == 1 } -> break
#ifndef REFCOUNT_WAIT
	:: atomic { cached && refs > 1 && drained < 2 -> drained++ };
		atomic {
			if
			:: in_batch -> in_batch = false; refs--
			:: else
			fi
		}
	:: atomic { cached && refs > 1 && drained == 2 -> inv_writer = false; convert_is = busy }; goto done
#endif
	od
}

active proctype convert()
{
	byte drained = 0;

	atomic { !inv_writer && inv_readers == 0 -> inv_writer = true };
	atomic { assert(!is_private) };
	unmap();
#ifndef NO_REFERENCE_CHECK
	check_references();
#endif
	notifier_start();
	atomic { is_private = true };
	notifier_end();
	atomic { assert(!mapped); inv_writer = false; convert_is = converted };
done:	finish()
}

active proctype touch()
{
retry:	if						/* the processor */
	:: atomic { mapped } -> goto load
	:: atomic { !mapped }
	fi;
	atomic { mmap_reader = true };			/* its fault */
	if
	:: atomic { mapped -> mmap_reader = false }; goto retry
	:: atomic { !mapped }
	fi;
	atomic { !inv_writer -> inv_readers++ };
	if
	:: atomic { is_private -> inv_readers--; mmap_reader = false; touch_is = sigbus }; goto done
	:: atomic { !is_private }
	fi;
	if
	:: atomic { !cached };
		atomic { refs = 2 };			/* the cache's and ours */
		atomic { !folio_lock -> folio_lock = true };
		atomic { cached = true };
		atomic { refs++; in_batch = true; inv_readers-- }
	:: atomic { cached };
		atomic { refs++ };
		atomic { !folio_lock -> folio_lock = true };
		atomic { assert(cached); inv_readers-- }
	fi;
	if
	:: atomic { uptodate }
	:: atomic { !uptodate }; atomic { uptodate = true }
	fi;
	atomic { !page_table_lock -> page_table_lock = true };
	atomic { mapped = true; page_table_lock = false; folio_lock = false; mmap_reader = false };
	goto retry;
load:	atomic { touch_is = loaded };
done:	finish()
}
